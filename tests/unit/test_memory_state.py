"""Which lessons bear on a question although they do not answer it, and which do not."""

from __future__ import annotations

import pytest

from pipeline.config import MemorySettings
from pipeline.memory.state import FEATURES, is_yes_no, relevant, state_of
from pipeline.memory.types import Reading, SlotWeight

CAPITAL = SlotWeight("les_capital", "What is the capital of Kazakhstan?", "Astana", 0.0, 1.0, 0.7)
AIRPORT = SlotWeight("les_airport", "What is the IATA code of Astana airport?", "NQZ", 0.0, 1.0, 0.5)
SLOTS = (CAPITAL, AIRPORT)


def shown(question: str, *slots: SlotWeight) -> list[str]:
    return [slot.answer for slot in relevant(question, Reading(1.0, slots or SLOTS))]


def state(question: str, reading: Reading = Reading(1.0, SLOTS)) -> dict[str, float]:  # noqa: B008 - frozen
    return dict(zip(FEATURES, state_of(question, reading, MemorySettings()), strict=True))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is the capital of Kazakhstan Almaty?", ["Astana"]),
        ("Astana is the capital of what?", ["Astana"]),
        ("What is the IATA code of the airport of the capital of Kazakhstan?", ["Astana", "NQZ"]),
        ("What is the capital of Uzbekistan?", []),
        ("How do I bake bread?", []),
    ],
)
def test_lessons_bear_on_questions_about_their_subject_or_answer(question: str, expected: list[str]) -> None:
    assert shown(question)[: len(expected)] == expected
    assert bool(shown(question)) == bool(expected)


def test_a_lesson_with_weight_bears_on_the_question_in_any_words() -> None:
    heavy = SlotWeight("les_capital", "What is the capital of Kazakhstan?", "Astana", 0.6, 1.0, 0.3)
    assert [slot.answer for slot in relevant("Where does the Kazakh government sit?", Reading(0.4, (heavy,)))] == [
        "Astana"
    ]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is Astana the capital?", True),
        ("The capital is Astana. True or false?", True),
        ("When did Rome fall? Was it before 500?", True),
        ("Could you tell me what the capital is?", False),
        ("What is the capital?", False),
        ("Do you know who wrote it?", False),
        ("Where, by number, did the IETF publish it?", False),
        ("The capital of Kazakhstan is", False),
        ("The headquarter of Southampton F.C. is located in", False),
        ("Mario Bros. is developed by", False),
        ("Has a GUI and a Python interface. In Luxembourg, the language spoken is", False),
        ("is astana the capital", True),
        ("Astana is the capital, right?", True),
        ("Astana is the capital, isn't it?", True),
    ],
)
def test_yes_no_questions_are_told_by_their_form(question: str, expected: bool) -> None:
    assert is_yes_no(question) is expected


def test_the_state_says_what_kind_of_question_it_is() -> None:
    assert state("Is the capital of Kazakhstan Almaty?")["yes_no"] == 1.0
    assert state("Astana is the capital of what?")["reversed"] == 1.0
    assert state("What is the IATA code of the airport of the capital of Kazakhstan?")["linked"] == 1.0
    neighbour = state("What is the capital of Uzbekistan?")
    assert (neighbour["yes_no"], neighbour["reversed"], neighbour["linked"], neighbour["confident"]) == (0, 0, 0, 0)
    assert neighbour["named"] < state("What is the capital of Kazakhstan nowadays?")["named"]


def test_a_question_whose_lesson_is_itself_yes_or_no_is_an_ordinary_one() -> None:
    lesson = SlotWeight("les_dst", "Is daylight saving time used in Iran?", "No", 0.9, 1.0, 0.9)
    assert state("Does Iran use daylight saving time?", Reading(0.1, (lesson,)))["yes_no"] == 0.0
    assert state("Does Iran use daylight saving time?", Reading(0.1, (lesson,)))["confident"] == 1.0


def test_the_state_follows_the_gate() -> None:
    open_, shut = (Reading(1 - gate, (SlotWeight("a", "q", "x", gate, 1.0, 0.5),)) for gate in (0.9, 0.1))
    assert state("What?", open_)["gate"] > 0 > state("What?", shut)["gate"]
