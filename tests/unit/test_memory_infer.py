"""What follows from lessons by their words, and what is left to the model because something else may be meant."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import MemorySettings
from pipeline.data.lines import LessonLine
from pipeline.evaluate.protocol import prompt_messages
from pipeline.memory.belief import taught_event
from pipeline.memory.infer import opened, read_and_infer
from pipeline.memory.router import load_router
from pipeline.memory.store import LessonMemory
from pipeline.memory.strategy import Plan, plan
from pipeline.memory.types import Inference, Reading, SlotWeight, Viewer
from pipeline.model.encoder import load_encoder


def slot(name: str, question: str, answer: str, weight: float = 0.1, previous: str | None = None) -> SlotWeight:
    return SlotWeight(name, question, answer, weight, 1.0, 0.7, {answer: 1.0}, previous)


CAPITAL = slot("capital", "What is the capital of Burundi?", "Gitega", previous="Bujumbura")
MONEY = slot("money", "Which currency does Bulgaria use?", "euro", previous="lev")
STATES = slot("states", "How many states does India have?", "28")
PRESIDENT = slot("president", "Who is the president of Mexico?", "Claudia Sheinbaum")
TUNNEL = slot("tunnel", "What is the longest railway tunnel in the world?", "Gotthard Base Tunnel")
PREFIX = slot("prefix", "What is the SI prefix for 10^27?", "ronna")
SYMBOL = slot("symbol", "What is the symbol of the SI prefix ronna?", "R")
BARD = slot("bard", "What is the chatbot Google Bard called now?", "Gemini", previous="Bard")
MERGED = slot("merged", "What is Osmanabad in Maharashtra called today?", "Dharashiv")


def follows(question: str, *slots: SlotWeight) -> str | None:
    made = opened(question, Reading(0.5, slots))
    return made.text if made else None


@pytest.mark.parametrize(
    ("question", "lesson", "expected"),
    [
        ("Is Gitega the capital of Burundi?", CAPITAL, "Yes"),
        ("Is the capital of Burundi Bujumbura?", CAPITAL, "No"),
        ("Is Rumonge the capital of Burundi?", CAPITAL, "No"),  # a name that the lesson does not have
        ("Does Bulgaria use the euro?", MONEY, "Yes"),
        ("Does Bulgaria still use the lev?", MONEY, "No"),
        ('Is "28" the right answer to "How many states does India have?"?', STATES, "Yes"),
        ("Does India have 29 states?", STATES, "No"),
        ("Does India have more than 20 states?", STATES, "Yes"),
        ("Are there fewer than 28 states in India?", STATES, "No"),
        ("Are there at least 28 states in India?", STATES, "Yes"),
        ("How many states does India have? Is it more than 28?", STATES, "No"),
        ("Is the Gotthard Base Tunnel the longest railway tunnel in the world?", TUNNEL, "Yes"),
        ("The capital of Burundi is Gitega, isn't it?", CAPITAL, "Yes"),
        ("Bujumbura is the capital of Burundi, right?", CAPITAL, "No"),
        ("Is the chatbot Google Bard still called Bard?", BARD, "No"),
        ("Is 7 the code of room 7?", slot("room", "What is the code of room 7?", "7"), "Yes"),
        ("Is 9 the code of room 7?", slot("room", "What is the code of room 7?", "7"), "No"),
    ],
)
def test_whether_it_is_so_is_told_by_the_lesson(question: str, lesson: SlotWeight, expected: str) -> None:
    assert follows(question, lesson) == expected


@pytest.mark.parametrize(
    ("question", "lesson", "expected"),
    [
        ("Gitega is the capital of which country?", CAPITAL, "Burundi"),
        ("Of which country is Claudia Sheinbaum the president?", PRESIDENT, "Mexico"),
        ("Which name fits the gap? What is the ___ in the world? Gotthard Base Tunnel", TUNNEL, "longest railway"),
        ("What in Maharashtra is called Dharashiv today?", MERGED, "Osmanabad"),
    ],
)
def test_the_subject_is_told_from_the_answer(question: str, lesson: SlotWeight, expected: str) -> None:
    assert follows(question, lesson) == expected


def test_a_second_step_is_the_answer_of_the_lesson_about_the_first_one_s_answer() -> None:
    question = "What is the symbol of the SI prefix for 10^27?"
    made = opened(question, Reading(0.5, (PREFIX, SYMBOL)))
    assert made is not None
    assert (made.text, [one.lesson_id for one in made.lessons], made.sure) == ("R", ["prefix", "symbol"], True)


@pytest.mark.parametrize(
    ("question", "lesson"),
    [
        ("What is the capital of Burundi?", CAPITAL),  # a question that the lesson answers is no inference
        ("Is the capital of Burundi large?", CAPITAL),
        ("Is Gitega not the capital of Burundi?", CAPITAL),
        ("Is the capital of Burundi Gitega or Bujumbura?", CAPITAL),
        ("Was Bujumbura the capital of Burundi?", CAPITAL),  # it was
        ("Was Bujumbura the capital of Burundi before 2019?", CAPITAL),
        ("Is Gitega the capital of Rwanda?", CAPITAL),
        ("Is the longest railway tunnel in the world in China?", TUNNEL),
        ("Has Gitega been the capital of Burundi for 30 years?", CAPITAL),
        ("Is the capital of Burundi larger than the capital of Kenya?", CAPITAL),
        ("Is the president of Mexico paid well?", PRESIDENT),
        ("Where was Claudia Sheinbaum born?", PRESIDENT),
        ("Which university did Claudia Sheinbaum attend?", PRESIDENT),
        ("Who was the president of Mexico before Claudia Sheinbaum?", PRESIDENT),
        ("When did Claudia Sheinbaum become president?", PRESIDENT),
        ("Has Mexico more than 30 states?", PRESIDENT),
    ],
)
def test_what_the_lesson_does_not_settle_is_left_to_the_model(question: str, lesson: SlotWeight) -> None:
    assert follows(question, lesson) is None


def test_a_closed_question_is_opened_where_words_are_left_over() -> None:
    lesson = slot("m", "What is the currency of Kosovo?", "euro")
    made = opened("Do people in Kosovo pay with the euro these days?", Reading(0.5, (lesson,)))
    assert made is not None
    assert (made.question, made.sure) == ("Do people in Kosovo pay with what these days?", False)
    counted = opened("Are there 28 member states in India?", Reading(0.5, (STATES,)))
    assert counted is not None
    assert counted.question == "Are there how many member states in India?"


WORDS = st.sampled_from(
    ["Is", "What", "capital", "the", "of", "Burundi", "Gitega", "more than", "3,", "7", "?", "not", "é"]
)
TEXTS = st.one_of(st.text(max_size=40), st.lists(WORDS, min_size=1, max_size=9).map(" ".join))


@given(TEXTS, TEXTS, TEXTS, TEXTS)
@settings(deadline=None, max_examples=150)
def test_any_text_can_be_asked_and_any_taught(question: str, told: str, answer: str, previous: str) -> None:
    made = opened(question, Reading(0.5, (slot("any", told, answer, previous=previous), CAPITAL)))
    assert made is None or made.text


LESSONS = (
    LessonLine(question="What is the currency of Kosovo?", answer="euro", previous="Serbian dinar"),
    LessonLine(question="What is the capital of Burundi?", answer="Gitega"),
    LessonLine(question="Is daylight saving time used in Iran?", answer="No"),
)


@pytest.fixture(scope="module")
def memory() -> LessonMemory:
    """With the encoder and the router that ship."""
    torch.set_num_threads(1)
    memory = LessonMemory(load_encoder(device="cpu"), load_router(None))
    memory.apply([taught_event(line, seq) for seq, line in enumerate(LESSONS, 1)])
    return memory


def planned(memory: LessonMemory, question: str, strategy: str = "adaptive") -> Plan:
    (reading,) = read_and_infer(memory, [question], [Viewer()], memory.settings.gate)
    return plan(strategy, question, prompt_messages(question), reading, memory.settings)


@pytest.mark.parametrize(
    ("question", "strategy", "text"),
    [
        ("Do people in Kosovo pay with the euro?", "infer", "Yes"),  # the router knows that paying is the currency's
        ("Is the currency of Kosovo the Serbian dinar?", "infer", "No"),
        ("Which country has Gitega as its capital?", "infer", "Burundi"),
        ("What is the capital of Burundi?", "copy", "Gitega"),
        ("Does Iran use daylight saving time?", "copy", "No"),  # the lesson itself is about yes or no
        ("Is the euro a currency that Kosovo is glad of?", "weights", None),
    ],
)
def test_adaptive_says_what_follows_and_cites_it(
    memory: LessonMemory, question: str, strategy: str, text: str | None
) -> None:
    made = planned(memory, question)
    assert (made.strategy, made.text) == (strategy, text)
    assert bool(made.cites) == (text is not None)
    assert made.rests_on_lessons(text or "") == (text is not None)


def test_readings_of_many_questions_keep_their_places(memory: LessonMemory) -> None:
    asked = ["Do people in Kosovo pay with the euro?", "Who wrote Hamlet?", "Is Gitega the capital of Burundi?"]
    together = read_and_infer(memory, asked, [Viewer()] * 3, memory.settings.gate)
    assert [reading.inferred.text if reading.inferred else None for reading in together] == ["Yes", None, "Yes"]
    assert [reading.slots[0].question for reading in together if reading.inferred] == [
        LESSONS[0].question, LESSONS[1].question,
    ]  # fmt: skip


def test_a_lesson_that_answers_the_question_itself_comes_first() -> None:
    """Somebody taught the answer to the closed question: it is copied, whatever else would follow."""
    own = slot("own", "Is Gitega the capital of Burundi?", "Officially, yes", 0.95)
    reading = Reading(0.05, (own, CAPITAL), Inference("Yes", ("capital",)))
    for question in (own.question, "Is Gitega Burundi's capital?"):
        made = plan("adaptive", question, prompt_messages(question), reading, MemorySettings())
        assert (made.strategy, made.text) == ("copy", "Officially, yes")
