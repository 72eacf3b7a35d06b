"""A question that leans on an earlier turn is completed; one that does not is read as if there were no earlier turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.protocol import Message
from pipeline.feedback.records import Event
from pipeline.memory.belief import slot_id
from pipeline.memory.followup import readings
from pipeline.memory.router import load_router
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Viewer
from pipeline.model.encoder import load_encoder

CAPITAL, CURRENCY = "What is the capital of Kazakhstan?", "Which currency does Bulgaria use?"


def dialogue(*turns: str) -> list[Message]:
    """Questions and answers by turns; the last one asks."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]


@pytest.mark.parametrize(
    ("before", "answer", "asked", "means"),
    [
        (CAPITAL, "Astana", "And of Burundi?", "What is the capital of Burundi?"),
        (CAPITAL, "Astana", "What about Burundi?", "What is the capital of Burundi?"),
        (CURRENCY, "lev", "And in Croatia?", "Which currency does Croatia use?"),
        ("Who is Mexico's president?", "Claudia Sheinbaum", "And Ghana's?", "Who is Ghana's president?"),
        (CAPITAL, "Astana", "And its currency?", "What is the currency of Kazakhstan?"),
        ("How many regions does Chile have?", "16", "And the capital?", "What is the capital of Chile?"),
        ("What is the name of element 113?", "nihonium", "And element 118?", "What is the name of element 118?"),
        ("What is the UTC offset of Rome in July?", "2", "And of Lima?", "What is the UTC offset of Lima in July?"),
        ("Who wrote Dune?", "Frank Herbert", "When was it published?", "When was Dune published?"),
        ("Who wrote Dune?", "Frank Herbert", "And where was he born?", "Where was Frank Herbert born?"),
        ("Where is Ghana?", "In West Africa.", "Who is its president?", "Who is Ghana's president?"),
    ],
)
def test_what_leans_on_the_question_before_is_completed(before: str, answer: str, asked: str, means: str) -> None:
    assert readings(dialogue(before, answer, asked))[0] == means


def test_a_chain_of_them_leans_on_its_beginning() -> None:
    asked = dialogue(CAPITAL, "Astana", "And of Burundi?", "Gitega", "And Palau?")
    assert readings(asked) == ("What is the capital of Palau?",)


@pytest.mark.parametrize(
    "asked",
    [
        "Who is the president of Ghana?",
        "And who is the president of Ghana?",
        "And the president of Ghana?",  # names its own subject
        "And the tallest statue in the world?",
        "And in the nineties?",  # a lesson of today does not answer it
        "And before him?",
        "And why?",
        "How does gold keep its value?",
        "Which statue is the tallest and where is it?",
        "What does water do when it freezes?",
        "what money do they use in spain?",
        "What time is it?",
        "Is it safe to eat raw eggs?",
        "Are you sure about it?",
        "Write a poem about it.",
        "  And   then ",
    ],
)
def test_what_says_itself_what_it_is_about_is_left_as_it_is(asked: str) -> None:
    assert readings(dialogue(CAPITAL, "Astana", asked)) == (asked,)


def test_without_a_question_before_there_is_nothing_to_lean_on() -> None:
    assert readings(dialogue("And of Burundi?")) == ("And of Burundi?",)
    assert readings([{"role": "system", "content": CAPITAL}, *dialogue("And of Burundi?")]) == ("And of Burundi?",)
    assert readings(dialogue("Thanks!", "You are welcome.", "And of Burundi?")) == ("And of Burundi?",)


def test_no_question_of_the_example_stream_is_touched_by_earlier_turns(root: Path) -> None:
    lines = (root / "examples" / "world_changes" / "lessons.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [text for line in map(json.loads, lines) for text in _texts(line)]
    assert len(asked) > 1_000
    for earlier in ((CAPITAL, "Astana"), ("Who wrote Dune?", "Frank Herbert")):
        assert [text for text in asked if readings(dialogue(*earlier, text)) != (text,)] == []


def _texts(line: dict[str, Any]) -> list[str]:
    return [line["question"], *line["paraphrases"], *line["neighbours"]]


@given(st.lists(st.text(max_size=300), min_size=1, max_size=9).filter(lambda turns: len(turns) % 2 == 1))
def test_any_dialogue_has_a_reading(turns: list[str]) -> None:
    found = readings(dialogue(*turns))
    assert found
    assert all(isinstance(text, str) for text in found)


@pytest.fixture(scope="module")
def confident(root: Path) -> Callable[..., str | None]:
    """The answer that the real router is confident of, with the example stream in memory; or none."""
    memory = LessonMemory(load_encoder(device="cpu"), load_router())
    lines = (root / "examples" / "world_changes" / "lessons.jsonl").read_text(encoding="utf-8").splitlines()
    memory.apply([_taught(seq, json.loads(line)) for seq, line in enumerate(lines, 1)])

    def ask(*turns: str) -> str | None:
        asked = readings(dialogue(*turns))
        best = max(memory.read(asked, [Viewer()] * len(asked)), key=lambda reading: reading.gate)
        return best.slots[0].answer if best.gate > memory.settings.gate else None

    return ask


def _taught(seq: int, line: dict[str, Any]) -> Event:
    lesson_id = slot_id("default", "global", "", line["question"])
    body = {"op": "correct", "lesson_id": lesson_id, "question": line["question"], "answer": line["answer"]}
    return Event("lesson", body, "ada", "teach", "default", "global", "", seq=seq)


@pytest.mark.parametrize(
    ("turns", "answer"),
    [
        (("What is the capital of France?", "Paris", "And of Tanzania?"), "Dodoma"),
        (("Which currency does Poland use?", "The zloty.", "And Bulgaria?"), "euro"),
        (("How many regions does Italy have?", "20", "And Ghana?"), "16"),
        (("Where is Kazakhstan?", "In Central Asia.", "How many time zones does it have?"), "1"),
        (("Where is NATO's headquarters?", "Brussels", "Who is its secretary general?"), "Mark Rutte"),
        (("What is the capital of Croatia?", "Zagreb", "And its currency?"), "euro"),
        (("What is the capital of Kazakhstan?", "Astana", "And of Spain?"), None),
        (("Who is the president of Mexico?", "Claudia Sheinbaum", "And of Brazil?"), None),
        (("Who runs the World Bank?", "Ajay Banga", "And Google?"), None),
        (("What is the official currency of Croatia?", "euro", "And before 2023?"), None),
        (("Who is the secretary general of NATO?", "Mark Rutte", "How old is he?"), None),
        (("What is the longest railway tunnel in the world?", "Gotthard Base Tunnel", "And in Japan?"), None),
    ],
)
def test_the_real_router_reads_what_was_meant(
    confident: Callable[..., str | None], turns: tuple[str, ...], answer: str | None
) -> None:
    assert confident(*turns) == answer
