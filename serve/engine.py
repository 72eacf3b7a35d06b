"""The engine: messages in, answers with citations out.

Two threads stand behind the event loop, so that torch never blocks it: one reads the lesson memory (encoder and
router), one decodes (:mod:`serve.decode_loop`). A confident copy therefore never waits behind a running generation.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipeline.config import MemorySettings
from pipeline.evaluate.protocol import Message, normalise
from pipeline.memory.infer import read_and_infer
from pipeline.memory.mixture import Mixture
from pipeline.memory.policy import Choice, RatedPolicy
from pipeline.memory.router import Router
from pipeline.memory.strategy import Plan, plan
from pipeline.memory.types import Reading, SlotWeight, Viewer
from serve.batching import Batcher
from serve.canary import Canary
from serve.decode_loop import Decoded, DecodeLoop, Job, Served
from serve.running_batch import GREEDY, Sampling
from serve.threads import use_threads
from serve.watermark import Watermark

NOTHING_READ = Reading(1.0, ())


@dataclass(frozen=True)
class EngineRequest:
    """``question`` is what the memory is read with; ``deadline`` is a ``time.monotonic()`` moment.

    ``readings``: what else the question may be, where it leans on an earlier turn, the likeliest first
    (:mod:`pipeline.memory.followup`).
    """

    messages: list[Message]
    question: str
    viewer: Viewer
    readings: tuple[str, ...] = ()
    strategy: str = "adaptive"
    options: tuple[str, ...] = ()  # an enumerated choice: the answer is one of these
    min_lesson_seq: int = 0
    max_new_tokens: int | None = None
    stops: tuple[str, ...] = ()
    sampling: Sampling = GREEDY
    deadline: float = math.inf


@dataclass(frozen=True)
class EngineAnswer:
    text: str
    question: str  # what was asked, completed where it leans on an earlier turn
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
    """The seam behind the HTTP API: asynchronous; concurrent requests are batched inside.

    ``on_text`` hears the answer's text in pieces as it is decoded; a copied answer comes in one piece.
    """

    async def answer(self, request: EngineRequest, on_text: Callable[[str], None] | None = None) -> EngineAnswer: ...


class Memory(Protocol):
    """What the engine needs of the lesson memory."""

    router: Router

    def read(self, questions: Sequence[str], viewers: Sequence[Viewer]) -> list[Reading]: ...


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
        threads: int = 1,
        follow_timeout_s: float = 5.0,
    ) -> None:
        self.served = served
        self.canary: tuple[Canary, Served] | None = None
        self.memory = memory
        self.followed = followed
        self.policy = RatedPolicy(settings.policy_rate)
        self.memory_thread = ThreadPoolExecutor(1, "lesson-memory", use_threads, (1,))
        self.decoding = DecodeLoop(threads)
        self._settings = settings
        self._follow_timeout_s = follow_timeout_s
        self._reader = Batcher(self._read, self.memory_thread, max_batch=max_batch)

    def swap(self, served: Served) -> None:
        """Later requests use ``served``; those that run finish on what they began with."""
        self.served = served
        if served.router is not None:
            self.memory.router = served.router

    def _served_to(self, viewer: Viewer) -> Served:
        canary = self.canary
        return canary[1] if canary is not None and canary[0].takes(viewer) else self.served

    async def close(self) -> None:
        await self._reader.close()
        self.decoding.close()
        self.memory_thread.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: EngineRequest, on_text: Callable[[str], None] | None = None) -> EngineAnswer:
        left = request.deadline - time.monotonic()
        await self.followed.reach(request.min_lesson_seq, min(self._follow_timeout_s, left))
        lesson_seq = self.followed.value
        served = self._served_to(request.viewer)
        request, reading = await self._read_as_asked(request)
        policy = self.policy.of(request.viewer.tenant)
        chosen = plan(request.strategy, request.question, request.messages, reading, self._settings, policy)
        if request.options or chosen.text is None:
            decoded = await self.decoding.run(_job(request, chosen, served, on_text))
            return _written(request, chosen, reading, lesson_seq, decoded)
        text = _cut(chosen.text, request.stops)
        if on_text is not None and text:
            on_text(text)
        return EngineAnswer(
            text=text,
            question=request.question,
            strategy=chosen.strategy,
            model_version=served.version,
            lesson_seq=lesson_seq,
            cites=chosen.cites,
            null_weight=reading.null_weight,
            probabilities=chosen.probabilities,
            copied=1.0,
            choice=chosen.choice,
        )

    async def _read_as_asked(self, request: EngineRequest) -> tuple[EngineRequest, Reading]:
        """The reading, and the request with the question that it is of: the one that a lesson answers with the most
        weight, if that exceeds ``memory.gate``, else the likeliest."""
        asked = [replace(request, question=question) for question in request.readings or (request.question,)]
        if request.strategy == "weights":
            return asked[0], NOTHING_READ
        found = list(zip(asked, await asyncio.gather(*map(self._reader.submit, asked)), strict=True))
        best = max(found, key=lambda pair: pair[1].gate)
        return best if best[1].gate > self._settings.gate else found[0]

    def _read(self, requests: list[EngineRequest]) -> list[Reading]:
        questions, viewers = [r.question for r in requests], [r.viewer for r in requests]
        return read_and_infer(self.memory, questions, viewers, self._settings.gate)


def _job(request: EngineRequest, chosen: Plan, served: Served, on_text: Callable[[str], None] | None) -> Job:
    loop = asyncio.get_running_loop()
    return Job(
        served=served,
        messages=chosen.messages if chosen.messages is not None else request.messages,
        question=request.question,
        loop=loop,
        done=loop.create_future(),
        limit=request.max_new_tokens,
        stops=request.stops,
        options=request.options,
        mixture=chosen.mixture,
        sampling=request.sampling,
        deadline=request.deadline,
        on_text=on_text,
    )


def _written(request: EngineRequest, chosen: Plan, reading: Reading, lesson_seq: int, decoded: Decoded) -> EngineAnswer:
    options = option_probabilities(request.options, decoded.scores, chosen.mixture)
    return EngineAnswer(
        text=max(options, key=options.__getitem__) if options else decoded.text,
        question=request.question,
        strategy=chosen.strategy,
        model_version=decoded.served.version,
        lesson_seq=lesson_seq,
        cites=_spoken(chosen, decoded),
        null_weight=reading.null_weight,
        probabilities=chosen.probabilities,
        copied=decoded.copied,
        choice=chosen.choice,
        options=options,
        prompt_tokens=decoded.prompt_tokens,
        tokens=decoded.tokens,
        finished=decoded.finished,
    )


def _cut(text: str, stops: Sequence[str]) -> str:
    """A copied answer up to the first stop string."""
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]


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


def _spoken(chosen: Plan, decoded: Decoded) -> tuple[SlotWeight, ...]:
    """What a decoded answer rests on: from a mixture, the lessons whose answer it probably is, or none of them."""
    if chosen.mixture is None or decoded.scores:
        return chosen.cites
    if decoded.copied < 0.5:
        return ()
    said = normalise(decoded.text)
    return tuple(slot for slot in chosen.cites if said in map(normalise, slot.answers))
