"""Slips of the pen are read as the lesson spells; other words stay what they are."""

from __future__ import annotations

import random

import pytest

from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, read_lines
from pipeline.evaluate.harder import typo
from pipeline.memory.belief import taught_event
from pipeline.memory.router import load_router
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Viewer
from pipeline.memory.typos import Mender
from pipeline.model.encoder import load_encoder


@pytest.fixture(scope="module")
def mender() -> Mender:
    tokenizer = load_encoder(device="cpu").tokenizer
    return Mender(lambda word: tokenizer.encode(word, add_special_tokens=False))


@pytest.mark.parametrize(
    ("slip", "lesson", "mended"),
    [
        ("Which city is the capital of Kazahkstan?", "The capital of Kazakhstan is", "Kazakhstan"),
        ("Who runs the Xing Corporaton?", "Who is head of Xing Corporation?", "Corporation"),
        ("what does OBORONPRMO make", "Oboronprom's owner", "Oboronprom"),
    ],
)
def test_a_slip_gets_the_spelling_of_the_lesson(mender: Mender, slip: str, lesson: str, mended: str) -> None:
    assert mended in mender.mended(slip, lesson)


@pytest.mark.parametrize(
    ("question", "lesson"),
    [
        ("What is the capital of Iraq?", "What is the capital of Iran?"),
        ("What is the capital of Austria?", "What is the capital of Australia?"),
        ("What was built in 1931 by Oboronprom?", "What was built in 1937 by Oboronprom?"),
        ("Who is Nazarbaeva?", "Who is Nazarenko?"),
        ("", "What is the capital of Iran?"),
    ],
)
def test_another_word_stays(mender: Mender, question: str, lesson: str) -> None:
    assert mender.mended(question, lesson) == question


def test_a_slip_in_a_paraphrase_hardly_costs_the_lesson() -> None:
    lines = [line for line in read_lines(example("world_changes/lessons.jsonl"), LessonLine) if line.paraphrases][:60]
    memory = LessonMemory(load_encoder(device="cpu"), load_router())
    memory.apply([taught_event(line, number) for number, line in enumerate(lines, 1)])

    def found(questions: list[str]) -> int:
        readings = memory.read(questions, [Viewer()] * len(questions))
        return sum(
            reading.gate > 0.65 and reading.slots[0].question == line.question
            for reading, line in zip(readings, lines, strict=True)
        )

    slips = [typo(line.paraphrases[0], random.Random(number)) or "" for number, line in enumerate(lines)]
    assert all(slips)
    assert found(slips) >= 0.9 * found([line.paraphrases[0] for line in lines])
