"""Teacher-forced forward passes over (prompt, continuation) pairs.

The memory method changes nothing before the last prompt token, so a prompt's keys and values up to there are
computed once and reused in every epoch: a step then runs only the last prompt token and the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.backbone import Backbone, Prompt
from pipeline.model.memory_layer import MemoryPass, attached


@dataclass(frozen=True)
class Continuation:
    """A prompt and the tokens that should follow it (for a lesson: the answer and the end token)."""

    prompt: Prompt
    target: tuple[int, ...]


def lesson_sequence(backbone: Backbone, question: str, answer: str) -> Continuation:
    target = (*backbone.answer_ids(answer), backbone.end_token)
    return Continuation(backbone.prompt(prompt_messages(question)), target)


@dataclass(frozen=True)
class Targets:
    """Continuations, right-padded: (batch, width)."""

    ids: Tensor
    valid: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Continuation], backbone: Backbone) -> Targets:
        width = max(len(s.target) for s in sequences)
        ids = [list(s.target) + [backbone.end_token] * (width - len(s.target)) for s in sequences]
        valid = [[True] * len(s.target) + [False] * (width - len(s.target)) for s in sequences]
        return cls(torch.tensor(ids, device=backbone.device), torch.tensor(valid, device=backbone.device))


Layer = tuple[Tensor, Tensor]  # keys and values, each (batch, heads, tokens, head_dim)


class PrefixCache:
    """Key-value caches of prompts without their last token; ``prompts`` are kept as far as the budget goes.

    A cache depends in its last bits on what else was in the batch that computed it. So prompts that are kept are
    computed in groups of their own, whenever the first of a group is asked for: a resumed run, which asks in another
    order, gets the same bits.
    """

    group_size = 16

    def __init__(self, backbone: Backbone, prompts: Sequence[Prompt] = (), budget_bytes: int = 2 << 30) -> None:
        self.backbone = backbone
        self._kept: dict[Prompt, list[Layer]] = {}
        self._group: dict[Prompt, tuple[Prompt, ...]] = {}
        ordered = sorted(dict.fromkeys(prompts), key=lambda prompt: len(prompt.ids))  # little padding
        left = budget_bytes / self._bytes_per_token() if ordered else 0.0
        for group in (tuple(ordered[i : i + self.group_size]) for i in range(0, len(ordered), self.group_size)):
            left -= sum(len(prompt.ids) - 1 for prompt in group)
            if left < 0:
                break
            self._group |= dict.fromkeys(group, group)

    def layers(self, prompts: Sequence[Prompt]) -> list[list[Layer]]:
        """The caches of several prompts; those that are not kept are computed in one batch."""
        for group in dict.fromkeys(self._group[p] for p in prompts if p in self._group and p not in self._kept):
            self._kept |= zip(group, self._compute(group), strict=True)
        others = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._kept))
        fresh = dict(zip(others, self._compute(others), strict=True)) if others else {}
        return [self._kept.get(prompt) or fresh[prompt] for prompt in prompts]

    def _bytes_per_token(self) -> int:
        (layers,) = self._compute([Prompt((self.backbone.end_token,) * 2, (False,) * 2)])
        return sum(keys.nbytes + values.nbytes for keys, values in layers)

    @torch.no_grad()
    def _compute(self, prompts: Sequence[Prompt]) -> list[list[Layer]]:
        batch = self.backbone.batch([Prompt(p.ids[:-1], p.span[:-1]) for p in prompts])
        cache = self.backbone.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        lengths = [len(p.ids) - 1 for p in prompts]
        return [
            [(layer.keys[row, :, -n:].clone()[None], layer.values[row, :, -n:].clone()[None]) for layer in cache.layers]
            for row, n in enumerate(lengths)
        ]

    def batch(self, prompts: Sequence[Prompt]) -> tuple[DynamicCache, Tensor]:
        """Left-padded caches of several prompts and their mask (batch, tokens)."""
        parts = self.layers(prompts)
        width = max(len(p.ids) for p in prompts) - 1
        pads = [width - (len(p.ids) - 1) for p in prompts]
        layers = [
            tuple(
                torch.cat(
                    [nn.functional.pad(part[n][side], (0, 0, pad, 0)) for part, pad in zip(parts, pads, strict=True)]
                )
                for side in (0, 1)
            )
            for n in range(len(parts[0]))
        ]
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=self.backbone.device)
        return DynamicCache(layers), mask


def logits_after_prefix(
    backbone: Backbone, prefixes: PrefixCache, sequences: Sequence[Continuation], memory: MemoryPass | None
) -> tuple[Tensor, Targets]:
    """Logits that predict each target token: (batch, width, vocabulary). Only this part sees the memory layers."""
    prompts = [s.prompt for s in sequences]
    targets = Targets.of(sequences, backbone)
    cache, mask = prefixes.batch(prompts)
    last = torch.tensor([[p.ids[-1]] for p in prompts], device=targets.ids.device)
    ids = torch.cat([last, targets.ids[:, :-1]], dim=1)
    lengths = torch.tensor([[len(p.ids) - 1] for p in prompts], device=ids.device)
    with attached(backbone.layers, memory):
        logits = backbone.model(
            input_ids=ids,
            attention_mask=torch.cat([mask, torch.ones_like(ids)], dim=1),
            position_ids=lengths + torch.arange(ids.shape[1], device=ids.device),
            past_key_values=cache,
            use_cache=True,
        ).logits
    return logits, targets


def logits_of_whole(model: Any, backbone: Backbone, sequences: Sequence[Continuation]) -> tuple[Tensor, Targets]:
    """The same logits from whole sequences, for methods that change the prompt's own states."""
    targets = Targets.of(sequences, backbone)
    batch = backbone.batch([s.prompt for s in sequences])
    ids = torch.cat([batch.ids, targets.ids[:, :-1]], dim=1)
    mask = torch.cat([batch.mask, torch.ones_like(targets.ids[:, :-1])], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    width = targets.ids.shape[1]
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=width
    ).logits
    return logits, targets
