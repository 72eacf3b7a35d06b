"""Questions about the time before a lesson: no lesson is copied for them, and no other question is taken for one."""

from __future__ import annotations

import pytest

from pipeline.config import MemorySettings
from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, read_lines
from pipeline.evaluate.protocol import prompt_messages
from pipeline.memory.strategy import plan
from pipeline.memory.tense import asks_earlier
from pipeline.memory.types import Reading, SlotWeight

CURRENCY = "What is the official currency of Croatia?"


@pytest.mark.parametrize(
    "question",
    [
        "What was the currency of Croatia before 2023?",
        "Which currency did Croatia use until January 2023?",
        "What is the currency of Croatia before 2023?",
        "Which money did people in Croatia pay with previously?",
        "What was Croatia's former currency?",
        "Thanks. What did Croatia pay with prior to the euro?",
    ],
)
def test_an_earlier_time_is_heard(question: str) -> None:
    assert asks_earlier(question, CURRENCY)


@pytest.mark.parametrize(
    ("question", "lesson"),
    [
        ("What has been the currency of Croatia since 2023?", CURRENCY),
        ("We went there before 2023. What is the currency of Croatia?", CURRENCY),
        ("Under what name did the former Artemivsk become known?", "What is the city of Artemivsk called since 2016?"),
        ("Until when did Python 3.8 receive fixes?", "What is the end-of-life date of Python 3.8?"),
        ("What was Sri Lanka called before 1972?", "What was Sri Lanka formerly called?"),
        ("What was Istanbul's former name?", "What was Istanbul called before 1930?"),
    ],
)
def test_a_lesson_that_may_answer_is_not_ruled_out(question: str, lesson: str) -> None:
    assert not asks_earlier(question, lesson)


def test_no_wording_of_the_example_stream_is_taken_for_a_question_about_the_past() -> None:
    lines = read_lines(example("world_changes/lessons.jsonl"), LessonLine)
    wordings = [(text, line.question) for line in lines for text in (line.question, *line.paraphrases)]
    assert len(wordings) > 800
    assert [text for text, lesson in wordings if asks_earlier(text, lesson)] == []


def test_the_model_answers_what_was_before_by_itself() -> None:
    reading = Reading(0.05, (SlotWeight("les_a", CURRENCY, "euro", 0.95, 1.0, 0.9),))

    def strategy(question: str) -> str:
        return plan("adaptive", question, prompt_messages(question), reading, MemorySettings()).strategy

    assert strategy("What is Croatia's currency?") == "copy"
    assert strategy("What was Croatia's currency before 2023?") == "weights"
