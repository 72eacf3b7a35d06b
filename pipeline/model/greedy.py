"""Greedy decoding of a batch: what all prompts begin with is run once, and a row that has ended leaves the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.memory.mixture import CopyMixture
from pipeline.model.backbone import Backbone, Batch, Opening
from pipeline.model.memory_layer import MemoryPass
from pipeline.model.native_layer import Session


class Rows:
    """Everything that the running rows of a batch carry from token to token; it is kept or dropped together."""

    def __init__(
        self, backbone: Backbone, memory: MemoryPass | None, session: Session | None, mixture: CopyMixture | None
    ) -> None:
        self._backbone, self._session = backbone, session
        self.memory, self.mixture = memory, mixture
        self._cache: Any = None
        self._mask = self._positions = torch.empty(0)

    def begin(self, batch: Batch, opening: Opening) -> Tensor:
        """Run what follows the ``opening``; the logits after each prompt (batch, vocabulary)."""
        positions = opening.positions(batch)
        self._cache, self._mask, self._positions = opening.cache, opening.mask(batch), positions[:, -1:]
        # By its place: a slice would be a view, over which the output projection takes three times as long.
        last = torch.tensor([-1], device=batch.ids.device)
        logits = self._forward(batch.ids, positions, last)[:, -1]
        if self.memory is not None:
            self.memory.span = None  # the question has been read: from here on every token is an answer's
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """One more token for every row (batch, 1): the logits after it (batch, vocabulary)."""
        return self.along(tokens)[:, -1]

    def along(self, tokens: Tensor) -> Tensor:
        """These tokens for every row (batch, width), at once: the logits after each (batch, width, vocabulary)."""
        width = tokens.shape[1]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), width)], dim=1)
        positions = self._positions + torch.arange(1, width + 1, device=tokens.device)
        self._positions = positions[:, -1:]
        return self._forward(tokens, positions, 0)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows: (new batch,) indices."""
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        if self._session is not None:
            self._session.select(rows)
        if self.memory is not None and self.memory.weights is not None:
            self.memory.weights = self.memory.weights[rows]
        if self.mixture is not None:
            self.mixture.select(rows)

    def _forward(self, ids: Tensor, positions: Tensor, kept: Tensor | int) -> Tensor:
        """The logits of the ``kept`` places; 0: of all."""
        output = self._backbone.model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits
        return logits


@dataclass(frozen=True)
class Written:
    """One row's tokens, the end token included where it came, and the posterior that they were copied."""

    ids: list[int]
    copied: float = 0.0


def greedy(rows: Rows, logits: Tensor, limit: int, end_token: int) -> list[Written]:
    """Up to ``limit`` tokens for every row of ``rows``, which have begun with ``logits`` (batch, vocabulary)."""
    written: dict[int, Written] = {}
    numbers = torch.arange(len(logits), device=logits.device)  # of the running rows
    ids = torch.full((len(logits), 1), end_token, device=logits.device)  # one token of the prompt, then the answer
    for left in reversed(range(limit)):
        scores = rows.mixture(ids, logits) if rows.mixture else logits
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
        ended = ids[:, -1] == end_token if left else torch.ones_like(ids[:, -1], dtype=torch.bool)
        if ended.any():
            copied = rows.mixture.copied(ids) if rows.mixture else [0.0] * len(ids)
            for row in ended.nonzero()[:, 0].tolist():
                written[int(numbers[row])] = Written(ids[row, 1:].tolist(), copied[row])
            going = (~ended).nonzero()[:, 0]
            if not len(going):
                break
            ids, numbers = ids[going], numbers[going]
            rows.select(going)
        logits = rows.step(ids[:, -1:])
    return [written[number] for number in sorted(written)]
