"""A lesson that is taught in other words: which known lesson it replaces, and which it leaves alone."""

from __future__ import annotations

import pytest

from pipeline.data.lines import LessonLine
from pipeline.memory.belief import taught_event
from pipeline.memory.rewording import overlap
from pipeline.memory.router import load_router
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Viewer
from pipeline.model.encoder import load_encoder

CROATIA = LessonLine(question="What is the currency of Croatia?", answer="kuna")
REWORDED = "Which currency do people pay with in Croatia?"


@pytest.fixture
def memory() -> LessonMemory:
    made = LessonMemory(load_encoder(device="cpu"), load_router())
    others = [LessonLine(question="What is the currency of Georgia?", answer="lari")]
    made.apply([taught_event(line, seq) for seq, line in enumerate([CROATIA, *others], 1)])
    return made


def answers(memory: LessonMemory, *questions: str) -> list[str]:
    return [reading.slots[0].answer for reading in memory.read(questions, [Viewer()] * len(questions))]


def teach(memory: LessonMemory, line: LessonLine) -> None:
    found = overlap(memory, line)
    memory.apply([taught_event(line, memory.applied_seq + 1, found.lesson if found and found.replaced else None)])


def test_a_line_that_says_what_it_replaces_replaces_it_in_every_wording(memory: LessonMemory) -> None:
    teach(memory, LessonLine(question=REWORDED, answer="euro", previous="Kuna."))
    assert answers(memory, CROATIA.question, REWORDED, "What is the currency of Georgia?") == ["euro", "euro", "lari"]
    assert len(memory) == 2


def test_a_wording_that_was_taught_once_is_known_from_then_on(memory: LessonMemory) -> None:
    teach(memory, LessonLine(question=REWORDED, answer="euro", previous="kuna"))
    teach(memory, LessonLine(question=REWORDED, answer="dinar"))
    assert answers(memory, CROATIA.question, REWORDED) == ["dinar", "dinar"]


def test_without_saying_so_nothing_is_replaced_but_the_older_lesson_is_named(memory: LessonMemory) -> None:
    found = overlap(memory, LessonLine(question=REWORDED, answer="euro"))
    assert found is not None
    assert (found.lesson.question, found.lesson.answer, found.replaced) == (CROATIA.question, "kuna", False)
    teach(memory, LessonLine(question=REWORDED, answer="euro"))
    assert answers(memory, CROATIA.question, REWORDED) == ["kuna", "euro"]
    assert len(memory) == 3


def test_of_two_that_answer_it_the_outdated_one_is_replaced_and_agreement_is_no_overlap(memory: LessonMemory) -> None:
    teach(memory, LessonLine(question=REWORDED, answer="euro"))
    third = "What money is used in Croatia?"
    found = overlap(memory, LessonLine(question=third, answer="euro", previous="kuna"))
    assert found is not None
    assert (found.lesson.answer, found.replaced) == ("kuna", True)
    teach(memory, LessonLine(question=third, answer="euro", previous="kuna"))
    assert overlap(memory, LessonLine(question="Which money does Croatia use?", answer="Euro")) is None


@pytest.mark.parametrize(
    "line",
    [
        LessonLine(question="what is the currency of croatia", answer="euro", previous="kuna"),  # its own words
        LessonLine(question="Who wrote The Trial?", answer="Kafka", previous="kuna"),  # nothing near
        LessonLine(question="What is the currency of Albania?", answer="lek", previous="kuna"),  # a neighbour
        LessonLine(question=REWORDED, answer="euro", previous="kuna", scope="user"),  # for one person alone
    ],
)
def test_what_is_new_or_known_by_its_words_overlaps_with_nothing(memory: LessonMemory, line: LessonLine) -> None:
    assert overlap(memory, line) is None


def test_tenants_do_not_overlap(memory: LessonMemory) -> None:
    assert overlap(memory, LessonLine(question=REWORDED, answer="euro", previous="kuna"), "acme") is None
