"""The engine: messages in, answers with citations out.

Two single threads stand behind the event loop, so that torch never blocks it: one reads the lesson memory (encoder and
router), one decodes. A confident copy therefore never waits behind a running generation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.config import MemorySettings
from pipeline.evaluate.protocol import Message, normalise
from pipeline.memory.mixture import Mixture
from pipeline.memory.policy import Choice, RatedPolicy
from pipeline.memory.router import Router
from pipeline.memory.strategy import Plan, plan
from pipeline.memory.types import Reading, SlotWeight, Viewer
from pipeline.model.answerer import Generation
from serve.batching import Batcher
from serve.watermark import Watermark

NOTHING_READ = Reading(1.0, ())


class DeadlineExceeded(RuntimeError):  # noqa: N818 - reads as what happened
    """The request's time ran out before its answer was begun."""


class PromptTooLong(ValueError):  # noqa: N818
    """The rendered prompt does not fit the model."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"the prompt has {tokens} tokens, model.max_prompt_tokens is {limit}: shorten the messages")


@dataclass(frozen=True)
class EngineRequest:
    """``question`` is what the memory is read with; ``deadline`` is a ``time.monotonic()`` moment."""

    messages: list[Message]
    question: str
    viewer: Viewer
    strategy: str = "adaptive"
    options: tuple[str, ...] = ()  # an enumerated choice: the answer is one of these
    min_lesson_seq: int = 0
    max_new_tokens: int | None = None
    deadline: float = math.inf


@dataclass(frozen=True)
class EngineAnswer:
    text: str
    strategy: str
    model_version: int
    lesson_seq: int
    cites: tuple[SlotWeight, ...] = ()
    null_weight: float = 1.0
    probabilities: dict[str, float] = field(default_factory=dict)  # over strategies
    copied: float = 0.0  # probability that the text is a lesson's: 1 without decoding, between where a mixture decoded
    choice: Choice | None = None  # what a rating of this answer teaches the policy
    options: dict[str, float] = field(default_factory=dict)  # over the request's options
    prompt_tokens: int = 0
    tokens: int = 0
    finished: bool = True


class Engine(Protocol):
    """The seam behind the HTTP API: asynchronous; concurrent requests are batched inside."""

    async def answer(self, request: EngineRequest) -> EngineAnswer: ...


class Decoder(Protocol):
    """What the engine needs of an answerer."""

    def generate(
        self,
        prompts: Sequence[list[Message]],
        *,
        max_new_tokens: int | None = None,
        mixtures: Sequence[Mixture | None] | None = None,
    ) -> list[Generation]: ...

    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]: ...

    def prompt_tokens(self, messages: Sequence[Message]) -> int: ...


class Memory(Protocol):
    """What the engine needs of the lesson memory."""

    router: Router

    def read(self, questions: Sequence[str], viewers: Sequence[Viewer]) -> list[Reading]: ...


@dataclass(frozen=True)
class Served:
    """The model that answers now: one reference, taken once per batch and swapped whole."""

    decoder: Decoder
    version: int
    max_prompt_tokens: int
    router: Router | None = None  # None: the memory keeps its own


@dataclass(frozen=True)
class _Decoded:
    served: Served
    generation: Generation | None = None
    scores: tuple[float, ...] = ()


class BatchEngine:
    """One replica's engine over one lesson memory and the champion's answerer."""

    def __init__(
        self,
        served: Served,
        memory: Memory,
        settings: MemorySettings,
        followed: Watermark,
        *,
        max_batch: int = 16,
        batch_wait_ms: float = 5.0,
        follow_timeout_s: float = 5.0,
    ) -> None:
        self.served = served
        self.memory = memory
        self.followed = followed
        self.policy = RatedPolicy(settings.policy_rate)
        self.memory_thread = ThreadPoolExecutor(1, "lesson-memory")
        self._settings = settings
        self._follow_timeout_s = follow_timeout_s
        self._decode_thread = ThreadPoolExecutor(1, "decode")
        self._reader = Batcher(self._read, self.memory_thread, max_batch=max_batch)
        self._decoder = Batcher(self._decode, self._decode_thread, max_batch=max_batch, wait_s=batch_wait_ms / 1000)

    def swap(self, served: Served) -> None:
        """Later batches use ``served``; a batch that runs finishes on what it began with."""
        self.served = served
        if served.router is not None:
            self.memory.router = served.router

    async def close(self) -> None:
        await self._reader.close()
        await self._decoder.close()
        self.memory_thread.shutdown(wait=False, cancel_futures=True)
        self._decode_thread.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: EngineRequest) -> EngineAnswer:
        left = request.deadline - time.monotonic()
        await self.followed.reach(request.min_lesson_seq, min(self._follow_timeout_s, left))
        lesson_seq = self.followed.value
        reading = NOTHING_READ if request.strategy == "weights" else await self._reader.submit(request)
        policy = self.policy.of(request.viewer.tenant)
        chosen = plan(request.strategy, request.question, request.messages, reading, self._settings, policy)
        if request.options or chosen.text is None:
            decoded = await self._decoder.submit((request, chosen))
            return self._written(request, chosen, reading, lesson_seq, decoded)
        return EngineAnswer(
            text=chosen.text,
            strategy=chosen.strategy,
            model_version=self.served.version,
            lesson_seq=lesson_seq,
            cites=chosen.cites,
            null_weight=reading.null_weight,
            probabilities=chosen.probabilities,
            copied=1.0,
            choice=chosen.choice,
        )

    def _read(self, requests: list[EngineRequest]) -> list[Reading]:
        return self.memory.read([r.question for r in requests], [r.viewer for r in requests])

    def _decode(self, jobs: list[tuple[EngineRequest, Plan]]) -> list[_Decoded | Exception]:
        """One batch on one bundle. Jobs that cannot start are refused by themselves."""
        served = self.served
        results: list[_Decoded | Exception | None] = [self._refusal(served, *job) for job in jobs]
        open_jobs = [i for i, result in enumerate(results) if result is None]
        choosing = [i for i in open_jobs if jobs[i][0].options]
        if choosing:
            rows = served.decoder.score([jobs[i][0].question for i in choosing], [jobs[i][0].options for i in choosing])
            for i, row in zip(choosing, rows, strict=True):
                results[i] = _Decoded(served, scores=tuple(row))
        limits = {jobs[i][0].max_new_tokens for i in open_jobs if i not in choosing}
        for limit in limits:  # one decoding pass per length limit; most requests share the default
            alike = [i for i in open_jobs if i not in choosing and jobs[i][0].max_new_tokens == limit]
            mixtures = [jobs[i][1].mixture for i in alike]
            mixed = {"mixtures": mixtures} if any(mixtures) else {}
            texts = served.decoder.generate([_messages(*jobs[i]) for i in alike], max_new_tokens=limit, **mixed)
            for i, generation in zip(alike, texts, strict=True):
                results[i] = _Decoded(served, generation)
        return [result for result in results if result is not None]

    @staticmethod
    def _refusal(served: Served, request: EngineRequest, chosen: Plan) -> Exception | None:
        if time.monotonic() > request.deadline:
            return DeadlineExceeded("the request's time ran out while it waited: retry, or ask less at once")
        tokens = served.decoder.prompt_tokens(_messages(request, chosen))
        return PromptTooLong(tokens, served.max_prompt_tokens) if tokens > served.max_prompt_tokens else None

    def _written(
        self, request: EngineRequest, chosen: Plan, reading: Reading, lesson_seq: int, decoded: _Decoded
    ) -> EngineAnswer:
        options = option_probabilities(request.options, decoded.scores, chosen.mixture)
        generation = decoded.generation
        copied = generation.copied if generation else 0.0
        return EngineAnswer(
            text=generation.text if generation else max(options, key=options.__getitem__),
            strategy=chosen.strategy,
            model_version=decoded.served.version,
            lesson_seq=lesson_seq,
            cites=_spoken(chosen, generation),
            null_weight=reading.null_weight,
            probabilities=chosen.probabilities,
            copied=copied,
            choice=chosen.choice,
            options=options,
            prompt_tokens=generation.prompt_tokens if generation else 0,
            tokens=generation.tokens if generation else 0,
            finished=generation.finished if generation else True,
        )


def option_probabilities(options: Sequence[str], scores: Sequence[float], mixture: Mixture | None) -> dict[str, float]:
    """``p = (1 - g) softmax(scores) + sum of the shares of the answers that the option is``; g is their sum over all
    options, so that lessons whose answers are not offered count for nothing."""
    if not options:
        return {}
    top = max(scores)
    raw = [math.exp(score - top) for score in scores]
    shares = mixture.shares.items() if mixture else ()
    copied = [sum(share for answer, share in shares if normalise(answer) == normalise(option)) for option in options]
    gate = min(1.0, sum(copied))
    return {
        option: (1 - gate) * value / sum(raw) + share for option, value, share in zip(options, raw, copied, strict=True)
    }


def _spoken(chosen: Plan, generation: Generation | None) -> tuple[SlotWeight, ...]:
    """What a decoded answer rests on: from a mixture, the lessons whose answer it probably is, or none of them."""
    if chosen.mixture is None or generation is None:
        return chosen.cites
    if generation.copied < 0.5:
        return ()
    said = normalise(generation.text)
    return tuple(slot for slot in chosen.cites if said in map(normalise, slot.answers))


def _messages(request: EngineRequest, chosen: Plan) -> list[Message]:
    return chosen.messages if chosen.messages is not None else request.messages
