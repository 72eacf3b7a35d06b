"""Rows that decode together: a request joins with its prompt, each step gives every row one token, any row may leave.

A forward pass (:mod:`serve.forward`) runs on a cache of rows (:mod:`serve.kv_cache`). Memory layers work as they do for
one prompt: addressed once when the prompt runs, then each row keeps its slot weights until it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.memory.mixture import CopyMixture, Mixture
from pipeline.model.answerer import Answerer
from pipeline.model.backbone import Batch, Prompt
from pipeline.model.memory_layer import MemoryPass
from serve.forward import forward_of
from serve.kv_cache import KeyValueRows, PrefixStore


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; ``seed`` makes a sampled answer repeatable."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


GREEDY = Sampling()


@dataclass
class Row:
    """One request on its way. ``length`` counts the tokens whose keys and values are stored."""

    limit: int  # tokens that it may still come to: prompt and answer
    length: int
    last: int  # the token that the next step begins with
    sampling: Sampling
    generator: torch.Generator | None
    mixture: CopyMixture | None = None  # the model's logits pass through it
    written: list[int] = field(default_factory=lambda: [0])  # the mixture's view: one prompt token, then the answer


class RunningBatch:
    """Blocking; belongs to one thread.

    ``invariant``: a row's numbers do not depend on its company, because every prompt runs alone and whole, and every
    step has the full width and the same length. Slower; for evaluation.
    """

    def __init__(
        self, answerer: Answerer, *, width: int, kv_tokens: int, prefix_tokens: int = 0, invariant: bool = False
    ) -> None:
        self._answerer = answerer
        self._backbone = answerer.backbone
        self._pass = forward_of(self._backbone)
        parameter = next(self._backbone.model.parameters())
        self._cache = KeyValueRows(self._backbone.model.config, width, kv_tokens, parameter)
        self._prefixes = PrefixStore(0 if invariant else prefix_tokens)
        self._invariant = invariant
        self._width = width
        self._weights: list[Tensor] = []  # per row: (S,) weights over the memory layers' slots
        self.rows: list[Row] = []

    def has_room(self, prompts: Sequence[tuple[int, int]]) -> bool:
        """Whether rows of (prompt tokens, new tokens) can join those that run."""
        limits = [row.limit for row in self.rows] + [sum(tokens) for tokens in prompts]
        if self._invariant:
            return len(limits) <= self._width and max(limits) <= self._cache.budget // self._width
        return self._cache.fits(len(limits), max(limits))

    @torch.inference_mode()
    def admit(
        self,
        prompts: Sequence[Prompt],
        limits: Sequence[int],
        sampling: Sequence[Sampling],
        mixtures: Sequence[Mixture | None] | None = None,
    ) -> list[int]:
        """Run the prompts and append a row for each; returns each one's first token."""
        first = len(self.rows)
        totals = [len(prompt.ids) + limit for prompt, limit in zip(prompts, limits, strict=True)]
        self._reserve(totals)
        groups = [[prompt] for prompt in prompts] if self._invariant else [list(prompts)]
        logits = torch.cat([self._run_prompts(group, first + n) for n, group in enumerate(groups)])
        mixed = mixtures or [None] * len(prompts)
        for prompt, total, chosen, mixture in zip(prompts, totals, sampling, mixed, strict=True):
            row = Row(total, len(prompt.ids), 0, chosen, self._generator(chosen), self._copying(mixture))
            self.rows.append(row)
        return self._choose(logits, self.rows[first:])

    @torch.inference_mode()
    def step(self) -> list[int]:
        """One token for every row, in the order of ``rows``."""
        count = self._width if self._invariant else len(self.rows)
        spare = count - len(self.rows)
        lengths = torch.tensor([row.length for row in self.rows] + [0] * spare, device=self._backbone.device)
        ids = torch.tensor([row.last for row in self.rows] + [0] * spare, device=self._backbone.device)
        longest = self._cache.capacity if self._invariant else max(row.length for row in self.rows) + 1
        logits = self._forward(ids[:, None], lengths[:, None], 0, longest, self._memory(spare))
        for row in self.rows:
            row.length += 1
        return self._choose(logits[: len(self.rows)], self.rows)

    @torch.inference_mode()
    def drop(self, index: int) -> None:
        """A row leaves; the last one takes its place, so that the running rows stay together."""
        last = len(self.rows) - 1
        if index != last:
            self._cache.move(last, index, self.rows[last].length)
            self.rows[index] = self.rows[last]
            self._weights[index : index + 1] = self._weights[last : last + 1]
        del self.rows[last], self._weights[last:]

    @torch.inference_mode()
    def copied(self, index: int) -> float:
        """The posterior that what the row has written was copied from a lesson; 0 without a mixture."""
        row = self.rows[index]
        if row.mixture is None:
            return 0.0
        return row.mixture.copied(torch.tensor([row.written], device=self._backbone.device))[0]

    def clear(self) -> None:
        """Every row leaves."""
        self.rows.clear()
        self._weights.clear()

    def _reserve(self, totals: Sequence[int]) -> None:
        if self._invariant:
            self._cache.reserve(self._width, self._cache.budget // self._width)
        else:
            needed = max([*totals, *(row.limit for row in self.rows)])
            self._cache.reserve(len(self.rows) + len(totals), needed)

    def _run_prompts(self, prompts: list[Prompt], first: int) -> Tensor:
        """(n, vocabulary) after each prompt. What a prompt shares with a remembered beginning is not run again."""
        known = [self._recall(prompt, first + n) for n, prompt in enumerate(prompts)]
        batch = self._backbone.batch(
            [Prompt(prompt.ids[n:], prompt.span[n:]) for prompt, n in zip(prompts, known, strict=True)]
        )
        ends = torch.tensor([len(prompt.ids) for prompt in prompts], device=self._backbone.device)
        columns = torch.arange(batch.ids.shape[1], device=self._backbone.device)
        positions = ends[:, None] - len(columns) + columns  # left-padded: the last column is the last token
        memory = self._answerer.memory_pass(batch)
        longest = self._cache.capacity if self._invariant else int(ends.max())
        logits = self._forward(batch.ids, positions, first, longest, memory, batch)
        self._weights.extend([] if memory is None or memory.weights is None else memory.weights.unbind())
        for n, prompt in enumerate(prompts):
            self._remember(prompt, first + n)
        return logits

    def _forward(
        self,
        ids: Tensor,
        positions: Tensor,
        first: int,
        longest: int,
        memory: MemoryPass | None,
        batch: Batch | None = None,
    ) -> Tensor:
        """Logits (n, vocabulary) of the last column; each token sees the positions of its row up to its own."""
        real = torch.ones_like(ids, dtype=torch.bool) if batch is None else batch.mask.bool()
        self._cache.aim(first, torch.where(real, positions, self._cache.capacity), longest)
        seen = torch.arange(longest, device=ids.device) <= positions.clamp(min=0)[..., None]  # (n, tokens, longest)
        with self._backbone.lock:
            return self._pass(ids, positions.clamp(min=0), self._bias(seen)[:, None], self._cache, memory)

    def _bias(self, seen: Tensor) -> Tensor:
        """0 where a token is seen, the lowest number elsewhere: additive, as every attention kernel takes it."""
        dtype = self._cache.store.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)

    def _memory(self, spare: int) -> MemoryPass | None:
        if not self._weights:
            return None
        weights = torch.stack(self._weights)
        if spare:
            weights = torch.cat([weights, weights.new_zeros(spare, weights.shape[1])])
        state = self._answerer.memory
        if state is None or not bool(weights.any()):
            return None
        return MemoryPass(state, state.values, weights=weights, addressed=True)

    def _recall(self, prompt: Prompt, row: int) -> int:
        """Only what stands before the question: the question itself is always run, because memory reads it."""
        known, saved = self._prefixes.longest(prompt.ids[: prompt.opening] + prompt.ids[-1:])
        if saved is not None:
            self._cache.copy_in(row, saved, known)
        return known

    def _remember(self, prompt: Prompt, row: int) -> None:
        beginning = prompt.ids[: prompt.opening]
        if self._prefixes.wants(beginning):
            self._prefixes.add(beginning, self._cache.copy_out(row, len(beginning)))

    def _choose(self, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        for n, row in enumerate(rows):
            if row.mixture is not None:
                written = torch.tensor([row.written], device=logits.device)
                logits[n] = row.mixture(written, logits[n : n + 1])[0]
        chosen: list[int] = logits.argmax(-1).tolist()
        for n, row in enumerate(rows):
            if row.generator is not None:
                chosen[n] = _sample(logits[n], row.sampling, row.generator)
            row.last = chosen[n]
            if row.mixture is not None:
                row.written.append(chosen[n])
        return chosen

    def _copying(self, mixture: Mixture | None) -> CopyMixture | None:
        backbone = self._backbone
        return CopyMixture([mixture], backbone.answer_ids, backbone.end_token, backbone.device) if mixture else None

    def _generator(self, sampling: Sampling) -> torch.Generator | None:
        if sampling.temperature == 0:
            return None
        generator = torch.Generator(self._backbone.device)
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed % 2**63)
        return generator


def _sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token from softmax(logits / temperature), cut to the smallest set that holds ``top_p`` of it."""
    shares, order = (logits.float() / sampling.temperature).softmax(-1).sort(descending=True)
    shares[shares.cumsum(-1) - shares >= sampling.top_p] = 0.0
    return int(order[torch.multinomial(shares, 1, generator=generator)])
