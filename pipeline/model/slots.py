"""Equation 2 inside the transformer: softmax(K x / sqrt(d)) over slots, with a null slot that stands for "none".

Keys and queries have unit length, so ``temperature`` stands for the scale sqrt(d) / (|k| |x|). The null slot has logit
0, and a key's logit is its similarity above its threshold; a key at or below it weighs *exactly* 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.model.delta_rule import chunked


def slot_logits(similarity: Tensor, thresholds: Tensor | float, temperature: Tensor | float) -> Tensor:
    """Similarities (..., keys) -> logits against the null slot's 0; -inf at or below a key's threshold."""
    logits = (similarity - thresholds) / temperature
    return logits.masked_fill(logits <= 0, float("-inf"))


def slot_weights(logits: Tensor) -> Tensor:
    """Softmax over (..., keys) and the null slot; what is returned sums to 1 - null."""
    null = torch.zeros_like(logits[..., :1])
    return torch.cat([null, logits], dim=-1).softmax(dim=-1)[..., 1:]


class Reading(NamedTuple):
    """How slots are read: the null slot's threshold, the softmax's temperature, and how many slots may speak."""

    threshold: float
    temperature: float
    top_k: int


class Slots(NamedTuple):
    """Slots that grow while they are written: one per address that no earlier slot answers to.

    keys (batch, slots, d) unit length; values (batch, slots, d_value), zero until written; used (batch, slots) bool:
    rows of a batch need not have the same number.
    """

    keys: Tensor
    values: Tensor
    used: Tensor

    @classmethod
    def empty(cls, batch: int, d: int, device: torch.device) -> Slots:
        nothing = torch.zeros(batch, 0, d, device=device)
        return cls(nothing, nothing, torch.zeros(batch, 0, dtype=torch.bool, device=device))

    def weights(self, queries: Tensor, how: Reading, seen: Tensor | None = None) -> Tensor:
        """Queries (batch, tokens, d) -> weights (batch, tokens, slots); all but the best ``top_k`` are exactly 0.

        ``seen`` (batch, tokens, slots) narrows the slots that each token knows; default: the used ones.
        """
        similarity = queries @ self.keys.transpose(1, 2)
        seen = self.used[:, None] if seen is None else seen
        logits = slot_logits(similarity, how.threshold, how.temperature).masked_fill(~seen, float("-inf"))
        if how.top_k < logits.shape[-1]:
            least = logits.topk(how.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        return slot_weights(logits)

    def read(self, queries: Tensor, how: Reading) -> Tensor:
        """(batch, tokens, d) -> (batch, tokens, d_value); exactly 0 where the null slot has all the weight."""
        with torch.autocast(queries.device.type, enabled=False):
            return self.weights(queries.float(), how) @ self.values

    def write(
        self, queries: Tensor, addresses: Tensor, targets: Tensor, rate: Tensor, how: Reading, floor: float
    ) -> tuple[Tensor, Slots]:
        """Equation 3, value <- value + rate (target - read) weight, token by token; reads see what stands before them.

        addresses (batch, tokens, d), targets (batch, tokens, d_value), rate (batch, tokens) in [0, 1]; a token whose
        rate is below ``floor`` opens no slot. Returns what each token's query reads after its own write, and the slots.
        """
        with torch.autocast(queries.device.type, enabled=False):
            queries, addresses, targets, rate = (x.float() for x in (queries, addresses, targets, rate))
            grown, born = self._grown(addresses, rate >= floor, how.threshold)
            now = torch.arange(addresses.shape[1], device=addresses.device)[None, :, None]
            seen = grown.used[:, None] & (born[:, None] <= now)  # (batch, tokens, slots)
            read, written = (grown.weights(x, how, seen) for x in (queries, addresses))
            reads, values = chunked(grown.values, read, written, targets, rate)
            return reads, grown._replace(values=values)

    def _grown(self, addresses: Tensor, wanted: Tensor, threshold: float) -> tuple[Slots, Tensor]:
        """With a slot for each wanted address that the null slot would get; and the token each slot was born at.

        Slots that stood before are born at -1. Rows that open fewer slots than others get unused ones.
        """
        opens = _opens(addresses.detach(), self.keys.detach(), self.used, wanted, threshold)  # (batch, tokens)
        count = opens.sum(-1)
        number = int(count.max()) if count.numel() else 0
        place = torch.where(opens, opens.cumsum(-1) - 1, number)  # the others go to a column that is cut off
        batch = len(addresses)
        times = torch.arange(addresses.shape[1], device=addresses.device).expand(batch, -1)

        def column(source: Tensor) -> Tensor:
            """source (batch, tokens, ...) at its slot: (batch, number, ...)."""
            index = place.reshape(*place.shape, *[1] * (source.ndim - 2)).expand_as(source)
            return source.new_zeros(batch, number + 1, *source.shape[2:]).scatter(1, index, source)[:, :number]

        slots = Slots(
            torch.cat([self.keys, column(addresses)], dim=1),
            torch.cat([self.values, self.values.new_zeros(batch, number, self.values.shape[-1])], dim=1),
            torch.cat([self.used, torch.arange(number, device=count.device) < count[:, None]], dim=1),
        )
        born = torch.cat([times.new_full(self.used.shape, -1), column(times)], dim=1)
        return slots, born


@torch.no_grad()
def _opens(addresses: Tensor, keys: Tensor, used: Tensor, wanted: Tensor, threshold: float) -> Tensor:
    """Which addresses open a slot: wanted, and above the threshold of no slot, nor of one opened before them."""
    known = ((addresses @ keys.transpose(1, 2) > threshold) & used[:, None]).any(-1)
    open_to = wanted & ~known  # (batch, tokens)
    alike = addresses @ addresses.transpose(1, 2) > threshold
    for t in range(1, addresses.shape[1]):
        open_to[:, t] &= ~(alike[:, t, :t] & open_to[:, :t]).any(-1)
    return open_to
