"""Lessons in a stream: one system takes them in one order, and is asked about all of them at given lengths."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from pydantic import BaseModel, ConfigDict

from pipeline.data.lines import LessonLine, ProbeLine
from pipeline.evaluate.exam import Asked, Exam, FirstToken, Outcomes, first_word, in_scope, judge
from pipeline.evaluate.harder import Workshop, drawn
from pipeline.evaluate.load import watched
from pipeline.evaluate.metrics import Interval, share
from pipeline.evaluate.progress import batches
from pipeline.evaluate.protocol import exact_match, prompt_messages
from pipeline.evaluate.seam import Generator, Reply, System, filled, generate

BATCH = 1024  # questions asked at once; out of many the answerer makes batches of like lengths
TAUGHT_AT_ONCE = 256  # between two reports of progress
TIMED_QUESTIONS = 50  # one at a time, at each length
TIMED_SECONDS = 15.0  # ... but no longer than this once there are
TIMED_LEAST = 10
NOISE_PROMPTS = 32


class Played(BaseModel):
    """What came of one system in one order: raw outcomes, so that orders can be pooled and systems paired."""

    model_config = ConfigDict(frozen=True)

    outcomes: dict[int, Outcomes]
    milliseconds: dict[int, list[float]]  # one question at a time
    others_cores: dict[int, float]  # CPU that other processes used during that
    bytes: dict[int, int]
    teaching_s: dict[int, float]  # until that length
    decisions: list[tuple[float, bool, bool]]  # at the last length: confidence, proposal right, lesson applies


@dataclass(frozen=True)
class Course:
    """One order of the lessons, and what is asked at which length. ``order`` holds places in ``lines``."""

    lines: tuple[LessonLine, ...]
    order: tuple[int, ...]
    lengths: tuple[int, ...]
    probes: tuple[ProbeLine, ...] = ()
    workshop: Workshop | None = None

    def exam(self, length: int) -> Exam:
        numbers = self.order[:length]
        taught = tuple(self.lines[number] for number in numbers)
        return Exam(taught, self.probes, numbers, self.workshop)

    def until(self, limit: int | None) -> Course | None:
        """The course as far as a system with a limit goes; ``None`` where even the first length is beyond it."""
        lengths = tuple(length for length in self.lengths if limit is None or length <= limit)
        if lengths == self.lengths:
            return self
        return Course(self.lines, self.order, lengths, self.probes, self.workshop) if lengths else None

    @cached_property
    def work(self) -> int:
        """Lessons to teach and questions to ask, as :func:`play` counts them where it asks both systems everything;
        second corrections are not foreseen."""
        exams = [list(self.exam(length).asked()) for length in self.lengths]
        return self.lengths[-1] + sum(2 * len(_questions(asked)) for asked in exams)


Told = Callable[[int], None]
Bypassed = Callable[[], AbstractContextManager[object]]  # keeps caches out of the way, where time is measured


@dataclass(frozen=True)
class Meter:
    """Counts lessons taught and questions asked."""

    told: Told = lambda _count: None
    bypassed: Bypassed = nullcontext

    def teach(self, system: System, lines: Sequence[LessonLine]) -> float:
        """Seconds that it took, with nothing known from another system's or order's lessons."""
        started = time.monotonic()
        with self.bypassed():
            for part in batches(lines, TAUGHT_AT_ONCE):
                system.teach(part)
                self.told(len(part))
        return time.monotonic() - started

    def ask(self, system: System, questions: Sequence[str]) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        for part in batches(questions, BATCH):
            replies.update(zip(part, system.ask(part), strict=True))
            self.told(len(part))
        return replies


def order(count: int, seed: int | None) -> tuple[int, ...]:
    """Places in the file, shuffled; ``None`` leaves them as they are."""
    places = range(count)
    return tuple(places if seed is None else random.Random(seed).sample(places, count))


def play(
    course: Course,
    system: System,
    uncorrected: System,
    *,
    first_token: FirstToken = first_word,
    timing: Timing | None = None,
    told: Told = lambda _count: None,
    bypassed: Bypassed = nullcontext,
) -> Played:
    """Teach and ask. ``system`` must have been taught nothing before; answers are timed where ``timing`` is given."""
    meter = Meter(told, bypassed)
    found = Played(outcomes={}, milliseconds={}, others_cores={}, bytes={}, teaching_s={}, decisions=[])
    taught_s = 0.0
    for start, length in pairwise((0, *course.lengths)):
        taught_s += meter.teach(system, [course.lines[number] for number in course.order[start:length]])
        asked = list(course.exam(length).asked())
        replies = meter.ask(system, _questions(asked))
        found.outcomes[length] = _judged(asked, replies, uncorrected, meter, first_token)
        found.bytes[length], found.teaching_s[length] = system.size_bytes(), taught_s
        if timing:
            found.milliseconds[length], found.others_cores[length] = timing.measure(system, asked, uncorrected)
    decisions = list(_decisions(asked, replies))
    if course.workshop:
        second, asked = course.workshop.overwrites(course.order[:length])
        meter.teach(system, second)  # last of all, because it changes what the lessons' answers are
        replies = meter.ask(system, _questions(asked))
        found.outcomes[length] |= _judged(asked, replies, uncorrected, meter, first_token)
    return found.model_copy(update={"decisions": decisions})


def _questions(asked: Sequence[Asked]) -> list[str]:
    return list(dict.fromkeys(each.question for each in asked))


def _judged(
    asked: Sequence[Asked], replies: dict[str, Reply], uncorrected: System, meter: Meter, first_token: FirstToken
) -> Outcomes:
    """The uncorrected system is asked for what outcomes depend on: a question that was left to it has not changed,
    whatever it says."""
    answered = {each.question for each in asked if each.rule == "answered"}
    compared = {each.question for each in asked if each.compared}
    needed = [q for q, reply in replies.items() if q in (answered if reply.text is None else compared)]
    said = {question: reply.text or "" for question, reply in meter.ask(uncorrected, needed).items()}
    return judge(asked, filled(replies, said), said, first_token)


def _decisions(asked: Sequence[Asked], replies: dict[str, Reply]) -> Iterator[tuple[float, bool, bool]]:
    """What a threshold on the system's confidence would let through, among lessons' questions and uncorrected ones."""
    applying = {each.question: each for each in in_scope(asked)}
    others = {each.question for each in asked if each.rule == "silent"} - applying.keys()
    for question in (*applying, *others):
        reply = replies[question]
        if reply.confidence is not None and reply.proposal is not None:
            right = question in applying and exact_match(reply.proposal, applying[question].answers)
            yield reply.confidence, right, question in applying
        elif question in applying and reply.from_memory is not None:
            yield 0.0, False, True  # nothing to propose: never covered


# time


@dataclass(frozen=True)
class Timing:
    """Times questions of taught lessons, one at a time, while ``bypassed`` keeps caches out of the way."""

    bypassed: Bypassed = nullcontext
    seed: int = 0

    def measure(self, system: System, asked: Sequence[Asked], uncorrected: System) -> tuple[list[float], float]:
        """(milliseconds, cores that other processes used meanwhile)."""
        questions = _questions(in_scope(asked))
        drawn(self.seed, "timed").shuffle(questions)
        milliseconds: list[float] = []
        with self.bypassed(), watched() as others:
            began = time.monotonic()
            for number, question in enumerate(questions[: TIMED_QUESTIONS + 1]):
                if number > TIMED_LEAST and time.monotonic() - began > TIMED_SECONDS:
                    break
                started = time.perf_counter()
                (reply,) = system.ask([question])
                if reply.text is None:
                    uncorrected.ask([question])
                milliseconds.append((time.perf_counter() - started) * 1000)
        return milliseconds[1:] or milliseconds, others.cores  # the first one warms up


def noise_floor(answerer: Generator, questions: Sequence[str]) -> Interval:
    """Share of prompts whose output at batch 1 is the output in one batch of up to 32."""
    prompts = [prompt_messages(question) for question in questions[:NOISE_PROMPTS]]
    together = generate(answerer, prompts)
    alone = [generate(answerer, [prompt])[0] for prompt in prompts]
    return share([one == other for one, other in zip(alone, together, strict=True)])
