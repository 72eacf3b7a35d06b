"""Memory layers for lessons, injected into any backbone: slots beside the MLP of a few decoder layers.

They are read by equation 2 and written by equation 3, by the update. (Decoders built from nothing have memory layers of
their own, which are written while the model reads: ``native_layer.py``.)

A prompt addresses the slots once, with its question's states at an early layer: token by token through a trained head
(``address.py``), or with their whitened mean. The slots' values are added to the residual stream of the later layers
from the last prompt token on. The null slot is inside the layer: a prompt that no key reaches gets *exactly* zero, so
its output is bit-identical to the base model's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.model.address import AddressHead
from pipeline.model.slots import slot_logits, slot_weights

WEIGHT_DIGITS = 4  # of a slot's weight that count in a name: sums in another order differ later
PER_KEY = ("keys", "key_slots", "thresholds", "reach")


@dataclass(frozen=True)
class MemoryState:
    """Everything that a bundle keeps of its memory layers.

    Shapes: K keys (one per trained phrasing), S slots (one per lesson), L value layers, d the model's width,
    r the rank of the whitening.
    """

    slots: tuple[str, ...]  # the lesson id of each slot
    key_layer: int
    value_layers: tuple[int, ...]
    top_k: int
    temperature: float
    mean: Tensor  # (d,) mean state of replayed prompts
    whiten: Tensor  # (d, r)
    keys: Tensor  # (K, r) unit length; under a head (K, U, r + 2), padded with zeros
    key_slots: Tensor  # (K,) the slot that each key opens
    thresholds: Tensor  # (K,) similarity below which the key yields to the null slot
    values: Tensor  # (L, S, d) zero until written
    reach: Tensor  # (K,) similarity of each key to its own phrasing: 1, unless the keys come from a codebook
    scale: float = 1.0  # lambda: what is read is scaled by it
    head: AddressHead | None = None  # then ``whiten`` is unused and empty

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("mean", "whiten", "values", *PER_KEY)}

    def header(self) -> dict[str, object]:
        return {
            "slots": list(self.slots),
            "key_layer": self.key_layer,
            "value_layers": list(self.value_layers),
            "top_k": self.top_k,
            "temperature": self.temperature,
            "scale": self.scale,
        }

    def to(self, device: torch.device, dtype: torch.dtype) -> MemoryState:
        moved: dict[str, Any] = {
            name: t.to(device) if t.dtype == torch.long else t.to(device, dtype) for name, t in self.tensors().items()
        }
        return replace(self, **moved, head=self.head.to(device, dtype) if self.head else None)

    def without(self, lessons: Collection[str]) -> MemoryState | None:
        """The state without the slots of ``lessons``, or ``None`` where no slot is left."""
        kept = [index for index, lesson_id in enumerate(self.slots) if lesson_id not in lessons]
        if not kept:
            return None
        number = torch.full((len(self.slots),), -1, dtype=torch.long)  # old slot -> new slot
        number[kept] = torch.arange(len(kept))
        slots = number[self.key_slots.cpu()].to(self.key_slots.device)
        per_key = {name: getattr(self, name)[slots >= 0] for name in PER_KEY}
        per_key |= {"key_slots": slots[slots >= 0]}
        changes: dict[str, Any] = {
            "slots": tuple(self.slots[i] for i in kept),
            "values": self.values[:, kept],
            **per_key,
        }
        return replace(self, **changes)

    def address(self, hidden: Tensor, span: Tensor) -> Tensor:
        """States of a prompt (batch, tokens, d) and its question's tokens -> queries, like ``keys``."""
        if self.head is not None:
            return self.head.address(hidden, span)
        return nn.functional.normalize((span_mean(hidden, span) - self.mean) @ self.whiten, dim=-1)

    def similarity(self, queries: Tensor) -> Tensor:
        """-> (batch, K)"""
        return queries @ self.keys.T if self.head is None else self.head.similarity(queries, self.keys)

    def read(self, queries: Tensor) -> Tensor:
        """Equation 2 (``slots.py``) over the keys -> slot weights (batch, S)."""
        logits = slot_logits(self.similarity(queries), self.thresholds, self.temperature)  # (batch, K)
        top, index = logits.topk(min(self.top_k, logits.shape[1]), dim=-1)
        weights = slot_weights(top)
        slots = torch.zeros(len(queries), len(self.slots), dtype=weights.dtype, device=weights.device)
        return slots.scatter_add_(1, self.key_slots[index], weights)

    def names(self, queries: Tensor) -> list[str]:
        """A name for what each query reads: equal for equal values and weights, empty where nothing is read."""
        rows = self.read(queries)
        return [
            " ".join(f"{weight:.{WEIGHT_DIGITS}f}*{self._content(slot)}" for slot, weight in spoken(row))
            for row in rows
        ]

    def _content(self, slot: int) -> str:
        written = (self.scale * self.values[:, slot]).float().cpu().contiguous()
        layers = ",".join(map(str, self.value_layers))
        return hashlib.sha256(layers.encode() + written.numpy().tobytes()).hexdigest()[:32]


@dataclass
class MemoryPass:
    """One batch on its way through the model: addressed once, then read at every value layer."""

    state: MemoryState
    values: Tensor  # (L, S, d): the state's, or the parameter that is being trained
    span: Tensor | None = None  # (batch, tokens) bool: the question's tokens, needed by the first forward pass
    weights: Tensor | None = None  # (batch, S) once addressed
    addressed: bool = field(default=False)

    def address(self, hidden: Tensor) -> None:
        """Called with the key layer's output (batch, tokens, d) of the prompt."""
        if self.addressed or self.span is None:
            return
        self.weights = self.state.read(self.state.address(hidden, self.span))
        self.addressed = True

    def write_into(self, output: Tensor, layer: int) -> Tensor:
        """Add the slots' values to an MLP output (batch, tokens, d), from the last prompt token on."""
        if self.weights is None or not bool(self.weights.any()):
            return output
        values = self.state.scale * self.values[layer].to(self.weights.dtype)
        read = (self.weights @ values).to(output.dtype)  # (batch, d)
        first = output.shape[1] - 1 if self.span is not None else 0
        return torch.cat([output[:, :first], output[:, first:] + read[:, None]], dim=1)


def spoken(weights: Tensor) -> list[tuple[int, float]]:
    """Slots that speak in a row of weights (S,), strongest first."""
    order = weights.argsort(descending=True).tolist()
    return [(slot, float(weights[slot])) for slot in order if weights[slot] > 0]


def span_mean(hidden: Tensor, span: Tensor) -> Tensor:
    """Mean state over the question's tokens: (batch, tokens, d), (batch, tokens) -> (batch, d)."""
    mask = span.to(hidden.dtype)[..., None]
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


@contextmanager
def attached(layers: nn.ModuleList, memory: MemoryPass | None) -> Iterator[None]:
    """Run the model with memory layers in place; without slots nothing is touched."""
    if memory is None or not memory.state.slots:
        yield
        return

    def on_key_layer(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        memory.address(output if isinstance(output, Tensor) else output[0])

    def on_value_layer(index: int):  # type: ignore[no-untyped-def]
        return lambda _module, _inputs, output: memory.write_into(output, index)

    handles = [layers[memory.state.key_layer].register_forward_hook(on_key_layer)]
    for index, layer in enumerate(memory.state.value_layers):
        handles.append(cast(nn.Module, layers[layer].mlp).register_forward_hook(on_value_layer(index)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
