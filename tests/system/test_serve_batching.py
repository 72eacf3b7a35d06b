"""The engine's batching, with a small deterministic answerer and a real thread behind it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest

from pipeline.config import MemorySettings
from pipeline.evaluate.protocol import Message, prompt_messages
from pipeline.memory.features import Pair
from pipeline.memory.router import LogOdds, Router
from pipeline.memory.types import Reading, SlotWeight, Viewer
from pipeline.model.answerer import Generation
from serve.batching import Batcher
from serve.engine import BatchEngine, DeadlineExceeded, EngineAnswer, EngineRequest, PromptTooLong, Served
from serve.watermark import NotYetFollowed, Watermark

Result = TypeVar("Result")


class Shouting:
    """Answers with its name and the question in capitals; ``gate`` holds a batch open. Counts what it was given."""

    def __init__(self, name: str = "one") -> None:
        self.name = name
        self.batches: list[int] = []
        self.running = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def generate(self, prompts: Sequence[list[Message]], *, max_new_tokens: int | None = None) -> list[Generation]:
        self.batches.append(len(prompts))
        self.running.set()
        assert self.gate.wait(10)
        texts = [f"{self.name}: {prompt[-1]['content'].upper()}" for prompt in prompts]
        return [Generation(text[:max_new_tokens], len(text), 1, finished=True) for text in texts]

    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[-float(len(option)) for option in row] for row in options]

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message["content"].split()) for message in messages)


class NoRouter:
    def score(self, pairs: Sequence[Pair]) -> LogOdds:
        return np.zeros(len(pairs))


class OneLesson:
    """A memory that knows one question, surely."""

    def __init__(self, question: str, answer: str) -> None:
        self.router: Router = NoRouter()
        self.slot = SlotWeight("les_1", question, answer, 0.99, 1.0)
        self.batches: list[int] = []

    def read(self, questions: Sequence[str], viewers: Sequence[Viewer]) -> list[Reading]:
        self.batches.append(len(questions))
        return [Reading(0.01, (self.slot,)) if text == self.slot.question else Reading() for text in questions]


def run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(work, 20))


def request(question: str, **changes: Any) -> EngineRequest:
    return EngineRequest(prompt_messages(question), question, Viewer(), **changes)


def engine(decoder: Shouting, version: int = 1, **options: Any) -> BatchEngine:
    served = Served(decoder, version, max_prompt_tokens=50)
    return BatchEngine(served, OneLesson("known?", "yes"), MemorySettings(), Watermark(), **options)


async def ask_all(where: BatchEngine, *questions: str, **changes: Any) -> list[EngineAnswer]:
    return await asyncio.gather(*(where.answer(request(question, **changes)) for question in questions))


def test_concurrent_requests_share_batches_and_keep_their_own_answers() -> None:
    decoder = Shouting()
    questions = [f"question {i}" for i in range(10)]
    answers = run(ask_all(engine(decoder, max_batch=4, batch_wait_ms=50), *questions))
    assert [answer.text for answer in answers] == [f"one: {question.upper()}" for question in questions]
    assert max(decoder.batches) == 4
    assert len(decoder.batches) == 3


def test_a_copy_needs_no_decoding_and_does_not_wait_for_one() -> None:
    decoder = Shouting()
    decoder.gate.clear()

    async def both() -> tuple[EngineAnswer, bool]:
        where = engine(decoder)
        slow = asyncio.create_task(where.answer(request("unknown?")))
        await asyncio.to_thread(decoder.running.wait, 10)
        copied = await where.answer(request("known?"))
        waiting = not slow.done()
        decoder.gate.set()
        await slow
        return copied, waiting

    copied, waiting = run(both())
    assert waiting
    assert (copied.text, copied.strategy, copied.tokens) == ("yes", "copy", 0)
    assert [cite.lesson_id for cite in copied.cites] == ["les_1"]


def test_weights_does_not_read_the_memory() -> None:
    where = engine(Shouting())
    answer = run(ask_all(where, "known?", strategy="weights"))[0]
    assert (answer.text, answer.strategy, answer.cites) == ("one: KNOWN?", "weights", ())
    assert where.memory.batches == []  # type: ignore[attr-defined]


def test_a_running_batch_finishes_on_the_model_that_it_began_with() -> None:
    old, new = Shouting("old"), Shouting("new")
    old.gate.clear()

    async def swapped() -> list[EngineAnswer]:
        where = engine(old, version=1)
        first = asyncio.create_task(where.answer(request("first")))
        await asyncio.to_thread(old.running.wait, 10)
        where.swap(Served(new, 2, max_prompt_tokens=50))
        old.gate.set()
        return [await first, await where.answer(request("second"))]

    first, second = run(swapped())
    assert (first.text, first.model_version) == ("old: FIRST", 1)
    assert (second.text, second.model_version) == ("new: SECOND", 2)


def test_options_come_back_with_probabilities_and_the_lesson_decides() -> None:
    where = engine(Shouting())
    by_model = run(ask_all(where, "unknown?", options=("no", "yes")))[0]
    by_lesson = run(ask_all(engine(Shouting()), "known?", options=("no", "Yes.")))[0]
    assert by_model.text == "no"  # the shorter one, as the fake scores them
    assert sum(by_model.options.values()) == pytest.approx(1)
    assert by_model.options["no"] == pytest.approx(np.exp(-2) / (np.exp(-2) + np.exp(-3)))
    assert by_lesson.text == "Yes."
    assert by_lesson.options["Yes."] > 0.99


def test_one_request_too_long_does_not_hurt_its_neighbours() -> None:
    async def mixed() -> list[EngineAnswer | BaseException]:
        where = engine(Shouting(), batch_wait_ms=50)
        requests = [request("short"), request("word " * 80), request("late", deadline=time.monotonic() + 0.01)]
        return await asyncio.gather(*map(where.answer, requests), return_exceptions=True)

    short, long, late = run(mixed())
    assert isinstance(short, EngineAnswer)
    assert isinstance(long, PromptTooLong)
    assert "max_prompt_tokens is 50" in str(long)
    assert isinstance(late, DeadlineExceeded)


def test_a_length_limit_holds_for_its_request_alone() -> None:
    async def mixed() -> list[EngineAnswer]:
        where = engine(Shouting(), batch_wait_ms=50)
        requests = [request("a long question"), request("a long question", max_new_tokens=6)]
        return await asyncio.gather(*map(where.answer, requests))

    assert [answer.text for answer in run(mixed())] == ["one: A LONG QUESTION", "one: A"]


def test_an_answer_waits_for_the_lesson_that_it_demands() -> None:
    async def waits() -> tuple[bool, EngineAnswer]:
        where = engine(Shouting())
        demanding = asyncio.create_task(where.answer(request("known?", min_lesson_seq=7)))
        await asyncio.sleep(0.05)
        early = demanding.done()
        await where.followed.advance(7)
        return early, await demanding

    early, answer = run(waits())
    assert not early
    assert answer.lesson_seq == 7


def test_a_lesson_that_does_not_come_is_named() -> None:
    with pytest.raises(NotYetFollowed, match="lesson_seq 9 is not here yet: .* to 0"):
        run(ask_all(engine(Shouting(), follow_timeout_s=0.05), "known?", min_lesson_seq=9))


def test_a_failure_reaches_every_caller_of_its_group_and_the_next_group_runs() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def fragile(items: list[int]) -> list[int]:
        if 13 in items:
            raise OSError("disk full")
        return [item * 2 for item in items]

    async def calls() -> list[Any]:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(fragile, thread, max_batch=8, wait_s=0.02)
            first = await asyncio.gather(batcher.submit(13), batcher.submit(1), return_exceptions=True)
            second = await batcher.submit(21)
            await batcher.close()
            return [*first, second]

    first, neighbour, second = run(calls())
    assert isinstance(first, OSError)
    assert isinstance(neighbour, OSError)
    assert second == 42


def test_a_caller_that_left_is_not_worked_for() -> None:
    decoder = Shouting()
    decoder.gate.clear()

    async def leaves() -> None:
        where = engine(decoder, max_batch=1)
        first = asyncio.create_task(where.answer(request("first")))
        await asyncio.to_thread(decoder.running.wait, 10)
        second = asyncio.create_task(where.answer(request("second")))
        await asyncio.sleep(0.05)
        second.cancel()
        decoder.gate.set()
        await first
        await where.answer(request("third"))

    run(leaves())
    assert decoder.batches == [1, 1]
