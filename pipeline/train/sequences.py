"""Teacher-forced forward passes over (prompt, continuation) pairs.

The memory method changes nothing before the last prompt token, so a prompt's keys and values up to there are
computed once and reused in every epoch: a step then runs only the last prompt token and the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pipeline.evaluate.protocol import prompt_messages
from pipeline.memory.context import Told, with_lessons
from pipeline.model.backbone import Backbone, Prompt
from pipeline.model.memory_layer import MemoryPass, attached


@dataclass(frozen=True)
class Continuation:
    """A prompt and the tokens that should follow it (for a lesson: the answer and the end token)."""

    prompt: Prompt
    target: tuple[int, ...]


def lesson_sequence(backbone: Backbone, question: str, answer: str, shown: Sequence[Told] = ()) -> Continuation:
    """``shown``: lessons that stand in the prompt."""
    target = (*backbone.answer_ids(answer), backbone.end_token)
    messages = prompt_messages(question)
    return Continuation(backbone.prompt(with_lessons(messages, shown) if shown else messages), target)


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
    """Key-value caches of ``prompts`` without their last token, kept as far as the budget goes.

    What all prompts begin with (the chat template's first lines) is computed and kept once.

    A cache depends in its last bits on what else was in the batch that computed it. So prompts that are kept are
    computed in groups of their own, whenever the first of a group is asked for: a resumed run, which asks in another
    order, gets the same bits.
    """

    group_size = 16

    def __init__(self, backbone: Backbone, prompts: Sequence[Prompt], budget_bytes: int = 2 << 30) -> None:
        self.backbone = backbone
        self._kept: dict[Prompt, list[Layer]] = {}
        ordered = sorted(dict.fromkeys(prompts), key=lambda prompt: len(prompt.ids))  # little padding
        self._shared = _common_length(ordered)
        self._beginning = self._run([p.ids[: self._shared] for p in ordered[:1]], []) if self._shared else []
        groups = [tuple(ordered[i : i + self.group_size]) for i in range(0, len(ordered), self.group_size)]
        self._group = {prompt: number for number, group in enumerate(groups) for prompt in group}
        self._groups, left = groups, budget_bytes / self._bytes_per_token() if ordered else 0.0
        self._lasting = 0  # groups that are kept
        for group in groups:
            left -= sum(self._own(prompt) for prompt in group)
            if left < 0:
                break
            self._lasting += 1

    def group(self, prompt: Prompt) -> int:
        """The number of the group that the prompt is computed in."""
        return self._group[prompt]

    def layers(self, prompts: Sequence[Prompt]) -> list[list[Layer]]:
        """The prompts' own parts; those that are not kept are computed in one batch."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        for number in dict.fromkeys(self._group[p] for p in missing if self._group[p] < self._lasting):
            self._kept |= zip(self._groups[number], self._compute(self._groups[number]), strict=True)
        others = [prompt for prompt in missing if prompt not in self._kept]
        fresh = dict(zip(others, self._compute(others), strict=True)) if others else {}
        return [self._kept.get(prompt) or fresh[prompt] for prompt in prompts]

    def batch(self, prompts: Sequence[Prompt]) -> tuple[DynamicCache, Tensor]:
        """Caches of several prompts and their mask (batch, tokens): the shared beginning, padding, the prompt's own."""
        parts = self.layers(prompts)
        width = max(self._own(p) for p in prompts)
        pads = [width - self._own(p) for p in prompts]
        layers = []
        for n in range(len(parts[0])):
            sides = []
            for side in (0, 1):
                own = [nn.functional.pad(part[n][side], (0, 0, pad, 0)) for part, pad in zip(parts, pads, strict=True)]
                rows = torch.cat(own)
                if self._shared:
                    rows = torch.cat([self._beginning[n][side].expand(len(rows), -1, -1, -1), rows], dim=2)
                sides.append(rows)
            layers.append(tuple(sides))
        mask = torch.tensor(
            [[1] * self._shared + [0] * pad + [1] * (width - pad) for pad in pads], device=self.backbone.device
        )
        return DynamicCache(layers), mask

    def _own(self, prompt: Prompt) -> int:
        """Tokens of a prompt's own between the shared beginning and its last token."""
        return len(prompt.ids) - 1 - self._shared

    def _bytes_per_token(self) -> int:
        layers = self._beginning or self._run([(self.backbone.end_token,)], [])
        return sum(keys.nbytes + values.nbytes for keys, values in layers) // max(1, self._shared)

    def _compute(self, prompts: Sequence[Prompt]) -> list[list[Layer]]:
        own = [p.ids[self._shared : -1] for p in prompts]
        found = self._run(own, self._beginning)
        return [
            [(keys[[row], :, -len(ids) :].clone(), values[[row], :, -len(ids) :].clone()) for keys, values in found]
            for row, ids in enumerate(own)
        ]

    @torch.no_grad()
    def _run(self, rows: Sequence[Sequence[int]], beginning: list[Layer]) -> list[Layer]:
        """Every layer's keys and values of token rows, padded on the left, behind a beginning (1, heads, tokens, d)."""
        batch = self.backbone.batch([Prompt(tuple(ids), (False,) * len(ids)) for ids in rows])
        before = beginning[0][0].shape[2] if beginning else 0
        past = [tuple(side.expand(len(rows), -1, -1, -1) for side in layer) for layer in beginning]
        cache = self.backbone.model(
            input_ids=batch.ids,
            attention_mask=torch.cat([batch.mask.new_ones(len(rows), before), batch.mask], dim=1),
            position_ids=before + batch.positions,
            past_key_values=DynamicCache(past) if past else None,
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]


def _common_length(prompts: Sequence[Prompt]) -> int:
    """Of the beginning that all prompts share; every prompt keeps a token of its own, and its last one."""
    if len(prompts) < 2:
        return 0
    columns = zip(*(prompt.ids[:-2] for prompt in prompts), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


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
