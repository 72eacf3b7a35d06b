"""Teacher-forced forward passes over (prompt, continuation) pairs.

The memory method changes nothing before the last prompt token, so a prompt's keys and values up to there are
computed once and reused in every epoch: a step then runs only the last prompt token and the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pipeline.evaluate.protocol import prompt_messages
from pipeline.memory.context import Told, with_lessons
from pipeline.model.backbone import Backbone, Prompt, common_length
from pipeline.model.memory_layer import MemoryPass, attached
from pipeline.train.kept import BUDGET_BYTES, Kept


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
    """

    def __init__(self, backbone: Backbone, prompts: Sequence[Prompt], budget_bytes: int = BUDGET_BYTES) -> None:
        self.backbone = backbone
        distinct = list(dict.fromkeys(prompts))
        # Every prompt keeps a token of its own, and its last one.
        self._shared = common_length([p.ids[:-2] for p in distinct]) if len(distinct) > 1 else 0
        self._beginning = self._run([distinct[0].ids[: self._shared]], []) if self._shared else []
        token_bytes = self._bytes_per_token() if distinct else 0
        self.layers = Kept(distinct, self._compute, self._own, token_bytes, budget_bytes)

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


def logits_of_whole(
    backbone: Backbone,
    sequences: Sequence[Continuation],
    *,
    below: LowerStates | None = None,
    share_opening: bool = True,
) -> tuple[Tensor, Targets]:
    """The same logits from whole sequences, for methods that change the prompt's own states.

    Only the layers above ``below`` run, if it is given. Else what all prompts begin with is run once, and its gradient
    is the sum over the rows: no token sees a later one. Without either every row runs through every layer once.
    """
    targets, prompts = Targets.of(sequences, backbone), [s.prompt for s in sequences]
    opening, batch = backbone.opened(prompts, share=share_opening and below is None)
    batch = batch.followed_by(targets.ids[:, :-1])
    with below.entered(backbone, sequences) if below else nullcontext():
        return backbone.model(**opening.inputs(batch), logits_to_keep=targets.ids.shape[1]).logits, targets


class LowerStates:
    """What enters decoder layer ``first`` along whole sequences, where no layer below it is trained: computed once."""

    def __init__(
        self, backbone: Backbone, first: int, sequences: Sequence[Continuation], budget_bytes: int = BUDGET_BYTES
    ) -> None:
        self.backbone, self.first = backbone, first
        self._in_tuples = False  # whether this architecture's layers return their states so
        parameter = next(backbone.model.parameters())
        token_bytes = int(backbone.model.config.get_text_config().hidden_size) * parameter.element_size()
        self.states = Kept(sequences, self._compute, lambda s: len(_taken(s)), token_bytes, budget_bytes)

    @contextmanager
    def entered(self, backbone: Backbone, sequences: Sequence[Continuation]) -> Iterator[None]:
        """The layers below ``first`` hand on what they are given, and it enters with the sequences' states.

        ``backbone``: this one or another with the same lower layers.
        """
        before = max(len(s.prompt.ids) for s in sequences)
        after = max(len(s.target) for s in sequences) - 1
        rows = [
            nn.functional.pad(states, (0, 0, before - len(s.prompt.ids), after - len(s.target) + 1))
            for s, states in zip(sequences, self.states(sequences), strict=True)
        ]
        hidden = torch.stack(rows).to(next(backbone.model.parameters()).dtype)
        lower = backbone.layers[: self.first]
        handle = backbone.layers[self.first].register_forward_pre_hook(
            lambda _module, inputs, named: ((hidden, *inputs[1:]), named), with_kwargs=True
        )
        for layer in lower:
            layer.forward = self._handed_on
        try:
            yield
        finally:
            handle.remove()
            for layer in lower:
                del layer.forward

    def _handed_on(self, hidden: Tensor, *_: object, **__: object) -> Tensor | tuple[Tensor]:
        return (hidden,) if self._in_tuples else hidden

    @torch.no_grad()
    def _compute(self, sequences: Sequence[Continuation]) -> list[Tensor]:
        """(tokens, d) each."""

        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            self._in_tuples = isinstance(output, tuple)

        rows = [_taken(sequence) for sequence in sequences]
        batch = self.backbone.batch([Prompt(ids, (False,) * len(ids)) for ids in rows])
        handle = self.backbone.layers[0].register_forward_hook(look)
        try:
            hidden = self.backbone.states(batch, self.first - 1)
        finally:
            handle.remove()
        return [states[-len(ids) :].clone() for states, ids in zip(hidden, rows, strict=True)]


def _taken(sequence: Continuation) -> tuple[int, ...]:
    """The tokens that the model is given."""
    return (*sequence.prompt.ids, *sequence.target[:-1])
