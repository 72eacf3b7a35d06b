"""The thread that decodes: requests join the running batch between two steps and leave it as soon as they are done.

The event loop hands in :class:`Job` s and gets text back through ``call_soon_threadsafe``; torch never runs on it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.evaluate.protocol import Message
from pipeline.memory.mixture import Mixture
from pipeline.model.backbone import Prompt
from serve.running_batch import GREEDY, Sampling
from serve.text_stream import TextStream
from serve.threads import use_threads

log = logging.getLogger("serve.decode_loop")

SCORED_TOGETHER = 8  # enumerated choices scored between two steps: more would hold the running rows up


class DeadlineExceeded(RuntimeError):  # noqa: N818 - reads as what happened
    """The request's time ran out before its answer was whole."""


class PromptTooLong(ValueError):  # noqa: N818
    """The rendered prompt does not fit the model."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"the prompt has {tokens} tokens, model.max_prompt_tokens is {limit}: shorten the messages")


class PromptRefused(ValueError):  # noqa: N818
    """The messages cannot become a prompt of this model."""


class Rows(Protocol):
    """Rows that decode together, as :class:`serve.running_batch.RunningBatch`."""

    def has_room(self, prompts: Sequence[tuple[int, int]]) -> bool: ...

    def admit(
        self,
        prompts: Sequence[Prompt],
        limits: Sequence[int],
        sampling: Sequence[Sampling],
        mixtures: Sequence[Mixture | None],
    ) -> list[int]: ...

    def copied(self, index: int) -> float: ...

    def step(self) -> list[int]: ...

    def drop(self, index: int) -> None: ...

    def clear(self) -> None: ...


class Decoder(Protocol):
    """What the engine needs of an answerer."""

    end_token: int
    max_new_tokens: int  # where a request names no limit
    max_prompt_tokens: int

    def render(self, messages: Sequence[Message]) -> Prompt: ...

    def rows(self) -> Rows: ...

    def text_stream(self, stops: Sequence[str]) -> TextStream: ...

    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]: ...


@dataclass(frozen=True)
class Served:
    """The model that answers now: one reference, swapped whole."""

    decoder: Decoder
    version: int
    router: Any = None  # None: the memory keeps its own


@dataclass(frozen=True)
class Decoded:
    """What the model made of one request."""

    served: Served
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    finished: bool = True  # it ended by itself or at a stop string, not at the length limit
    scores: tuple[float, ...] = ()
    copied: float = 0.0  # posterior that the text was copied from a lesson, where it was decoded from a mixture


@dataclass
class Job:
    """One request for the model. ``on_text`` and the future live on ``loop``; the rest belongs to the thread."""

    served: Served
    messages: list[Message]
    question: str
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Decoded]
    limit: int | None = None
    stops: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    mixture: Mixture | None = None
    sampling: Sampling = GREEDY
    deadline: float = float("inf")
    on_text: Callable[[str], None] | None = None
    left: bool = False  # the caller has gone: its row is freed before the next step
    tokens: int = 0
    ended: bool = False  # by itself or at a stop string
    prompt: Prompt | None = None
    stream: TextStream | None = field(default=None, repr=False)

    def tell(self, text: str) -> None:
        if text and self.on_text is not None:
            self.loop.call_soon_threadsafe(self.on_text, text)

    def resolve(self, outcome: Decoded | Exception) -> None:
        self.loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: Decoded | Exception) -> None:
        if self.done.done():
            return
        if isinstance(outcome, Exception):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)

    @property
    def needed(self) -> tuple[int, int]:
        assert self.prompt is not None
        return len(self.prompt.ids), self.limit or self.served.decoder.max_new_tokens

    def expired(self) -> bool:
        return time.monotonic() > self.deadline


@dataclass
class Running:
    """The running rows of one bundle with their jobs, in the same order."""

    served: Served
    rows: Rows
    jobs: list[Job] = field(default_factory=list)


class DecodeLoop:
    """One daemon thread. After a swap the rows of the old bundle run to their end beside those of the new one.

    ``threads`` work on one step.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting: list[Job] = []
        self._running: list[Running] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._forever, name="decode", daemon=True)
        self._thread.start()

    async def run(self, job: Job) -> Decoded:
        """The decoded answer; when the caller is cancelled, the row is freed."""
        if self._stopping:
            raise RuntimeError("the engine is closed")
        self._inbox.put(job)
        try:
            return await job.done
        finally:
            job.left = True

    def close(self) -> None:
        """Requests that wait or run get an error; the thread ends after its current step."""
        self._stopping = True
        self._inbox.put(None)

    @property
    def depth(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        return sum(len(running.jobs) for running in self._running), len(self._waiting) + self._inbox.qsize()

    def _forever(self) -> None:
        use_threads(self._threads)
        while not self._stopping:
            self._receive(block=not self._waiting and not self._running)
            try:
                self._round()
            except Exception as error:  # the border of the thread: every caller hears of it, the loop goes on
                log.exception("decoding failed")
                self._fail_all(error)
        self._fail_all(RuntimeError("the engine was closed while the request ran"))

    def _receive(self, block: bool) -> None:
        while block or not self._inbox.empty():
            job = self._inbox.get()
            if job is None:
                return
            if self._render(job):
                self._waiting.append(job)
                block = False

    def _render(self, job: Job) -> bool:
        """Render the prompt; False where it is refused, which its caller is told."""
        decoder = job.served.decoder
        try:
            job.prompt = decoder.render(job.messages)
        except Exception as error:  # noqa: BLE001 - the border to a model's chat template, which raises what it likes
            job.resolve(PromptRefused(f"the model's chat template refuses these messages: {error}"))
            return False
        if len(job.prompt.ids) > decoder.max_prompt_tokens:
            job.resolve(PromptTooLong(len(job.prompt.ids), decoder.max_prompt_tokens))
            return False
        return True

    def _round(self) -> None:
        self._prune()
        self._score()
        self._admit()
        for running in self._running:
            if running.jobs:
                self._advance(running, running.rows.step())
        self._running = [running for running in self._running if running.jobs]

    def _prune(self) -> None:
        """Nobody waits for the ones that left; the ones whose time is over are told."""
        for job in [job for job in self._waiting if job.left or job.expired()]:
            self._waiting.remove(job)
            job.resolve(_too_late())
        for running in self._running:
            for index in reversed(range(len(running.jobs))):
                job = running.jobs[index]
                if job.left or job.expired():
                    job.resolve(_too_late())
                    self._drop(running, index)

    def _score(self) -> None:
        """Enumerated choices of one bundle are scored together."""
        choosing = [job for job in self._waiting if job.options]
        group = [job for job in choosing if job.served is choosing[0].served][:SCORED_TOGETHER]
        if not group:
            return
        self._waiting = [job for job in self._waiting if job not in group]
        served = group[0].served
        rows = served.decoder.score([job.question for job in group], [job.options for job in group])
        for job, row in zip(group, rows, strict=True):
            job.resolve(Decoded(served, scores=tuple(row), prompt_tokens=job.needed[0]))

    def _admit(self) -> None:
        """Waiting jobs join their bundle's rows in order of arrival, as many as there is room for."""
        joining: list[tuple[Running, list[Job]]] = []
        for job in [job for job in self._waiting if not job.options]:
            running = self._rows_of(job.served)
            group = next((group for found, group in joining if found is running), None)
            if group is None:
                joining.append((running, group := []))
            if not running.rows.has_room([other.needed for other in [*group, job]]):
                if running.jobs or group:
                    break  # rows that leave will make room
                job.resolve(PromptRefused(f"{sum(job.needed)} tokens, prompt and answer, exceed serve.kv_tokens"))
            else:
                group.append(job)
            self._waiting.remove(job)
        for running, group in joining:
            if group:
                self._join(running, group)

    def _rows_of(self, served: Served) -> Running:
        for running in self._running:
            if running.served is served:
                return running
        self._running.append(Running(served, served.decoder.rows()))
        return self._running[-1]

    def _join(self, running: Running, group: list[Job]) -> None:
        for job in group:
            job.stream = running.served.decoder.text_stream(job.stops)
        limits = [job.needed[1] for job in group]
        before = list(running.jobs)
        running.jobs += group
        prompts = [job.prompt for job in group if job.prompt]
        first = running.rows.admit(prompts, limits, [job.sampling for job in group], [job.mixture for job in group])
        self._advance(running, [-1] * len(before) + first)

    def _advance(self, running: Running, tokens: list[int]) -> None:
        """One token for each row (-1: none); rows that are done leave, the last index first."""
        for index in reversed(range(len(tokens))):
            job = running.jobs[index]
            if tokens[index] >= 0 and self._take(job, tokens[index]):
                self._finish(job, running.rows.copied(index))
                self._drop(running, index)

    def _take(self, job: Job, token: int) -> bool:
        """Whether the answer is whole with this token."""
        assert job.stream is not None
        job.tokens += 1
        ended = token == job.served.decoder.end_token
        if not ended:
            job.tell(job.stream.push(token))
        job.ended = ended or job.stream.stopped
        return job.ended or job.tokens >= job.needed[1]

    def _finish(self, job: Job, copied: float) -> None:
        assert job.stream is not None
        job.tell(job.stream.finish())
        job.resolve(Decoded(job.served, job.stream.text, job.tokens, job.needed[0], job.ended, copied=copied))

    def _drop(self, running: Running, index: int) -> None:
        """The last row takes the freed place, here as in the rows."""
        running.rows.drop(index)
        running.jobs[index] = running.jobs[-1]
        del running.jobs[-1]

    def _fail_all(self, error: Exception) -> None:
        for job in [*self._waiting, *(job for running in self._running for job in running.jobs)]:
            job.resolve(error)
        for running in self._running:
            running.rows.clear()
        self._waiting, self._running = [], []


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the request's time ran out: retry, ask for less at once, or raise serve.request_timeout_s")
