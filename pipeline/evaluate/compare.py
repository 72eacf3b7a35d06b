"""Champion and challenger on the same questions: the evidence that the gate decides on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.config import GateSettings
from pipeline.data.lines import ProbeLine, RetentionProbe
from pipeline.evaluate.gate import Evidence, Pairs
from pipeline.evaluate.protocol import exact_match, prompt_messages
from pipeline.evaluate.retention import right
from pipeline.evaluate.seam import Responder
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle

Asked = tuple[str, str]  # question, expected answer
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Examination:
    """What both models are asked. ``withheld`` is reported and does not decide."""

    retention: tuple[RetentionProbe, ...]
    unrelated: tuple[str, ...]
    new_lessons: tuple[Asked, ...] = ()
    withheld: tuple[Asked, ...] = ()
    earlier: tuple[Asked, ...] = ()
    earlier_cycles: tuple[int, ...] = ()  # that trained each of them
    earlier_lessons: tuple[str, ...] = ()  # their ids


@dataclass(frozen=True)
class Outcome:
    """One model's results on an examination."""

    retention: tuple[bool, ...]
    unrelated: tuple[str, ...]  # whole output strings
    new_lessons: tuple[bool, ...]
    withheld: tuple[bool, ...]
    earlier: tuple[bool, ...]


def examination(
    retention: Sequence[RetentionProbe], unrelated: Sequence[ProbeLine], settings: GateSettings, seed: int
) -> Examination:
    """A fixed sample of the probes: a function of the seed alone, so that cycles are comparable."""
    return Examination(
        tuple(sample(retention, settings.retention_probes, seed)),
        tuple(probe.question for probe in sample(unrelated, settings.unrelated_probes, seed)),
    )


def sample(things: Sequence[Thing], count: int, seed: int) -> list[Thing]:
    return list(things) if count >= len(things) else random.Random(seed).sample(list(things), count)


def examine(answerer: Answerer, exam: Examination) -> Outcome:
    """Memory off: the weights alone answer."""
    unrelated = answerer.generate([prompt_messages(question) for question in exam.unrelated])
    return Outcome(
        retention=tuple(right(answerer, exam.retention)),
        unrelated=tuple(answer.text for answer in unrelated),
        new_lessons=matches(answerer, exam.new_lessons),
        withheld=matches(answerer, exam.withheld),
        earlier=matches(answerer, exam.earlier),
    )


def examine_bundle(folder: Path, exam: Examination) -> Outcome:
    """For a worker: this module needs little, so that it starts quickly."""
    return examine(Answerer.load(Bundle.load(folder)), exam)


def matches(answerer: Responder, asked: Sequence[Asked]) -> tuple[bool, ...]:
    """Whether each question is answered with what was expected, as a whole string."""
    prompts, answers = [prompt_messages(question) for question, _ in asked], [answer for _, answer in asked]
    found = answerer.generate(prompts, guesses=answers)
    return tuple(exact_match(made.text, [answer]) for made, answer in zip(found, answers, strict=True))


def evidence(champion: Outcome, challenger: Outcome) -> Evidence:
    same = [a == b for a, b in zip(champion.unrelated, challenger.unrelated, strict=True)]
    return Evidence(
        retention=Pairs(champion.retention, challenger.retention),
        unrelated=Pairs.identity(same),
        new_lessons=Pairs(champion.new_lessons, challenger.new_lessons),
        earlier=Pairs(champion.earlier, challenger.earlier),
    )
