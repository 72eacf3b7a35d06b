"""Trained and withheld wordings never meet."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.lines import LessonLine
from pipeline.data.phrasing import TRAINING_TEMPLATES, WITHHELD_TEMPLATES, lowered, phrasings, render
from pipeline.evaluate.protocol import normalise

QUESTION = "What is the currency of Croatia?"


def line(*paraphrases: str, question: str = QUESTION) -> LessonLine:
    return LessonLine(question=question, answer="euro", paraphrases=paraphrases)


def test_the_last_posted_paraphrase_is_withheld() -> None:
    trained, withheld = phrasings(line("Croatia pays in what?", "Zagreb's money is called?"))
    assert withheld == ["Zagreb's money is called?"]
    assert trained == [*(render(template, QUESTION) for template in TRAINING_TEMPLATES), "Croatia pays in what?"]


def test_without_a_paraphrase_a_template_is_withheld() -> None:
    _, withheld = phrasings(line())
    assert withheld[0] in [render(template, QUESTION) for template in WITHHELD_TEMPLATES]


def test_a_paraphrase_that_is_trained_anyway_cannot_be_withheld() -> None:
    """The question again, or a training template filled in, is no new wording."""
    trained, withheld = phrasings(
        line("Croatia pays in what?", "what is the currency of croatia", f"Question: {QUESTION}")
    )
    assert withheld == ["Croatia pays in what?"]
    assert trained[0] == QUESTION


def test_templates_are_disjoint() -> None:
    assert not set(TRAINING_TEMPLATES) & set(WITHHELD_TEMPLATES)
    assert (len(TRAINING_TEMPLATES), len(WITHHELD_TEMPLATES)) == (5, 2)


def test_only_a_small_word_loses_its_capital() -> None:
    questions = ["What is it?", "NATO was founded when?", "Croatia pays in what?", "In {which} year?", ""]
    assert [lowered(question) for question in questions] == ["what is it?", *questions[1:3], "in {which} year?", ""]
    assert render("I ask: {lowered}", "In {which} year?") == "I ask: in {which} year?"


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40), st.lists(st.text(max_size=40), max_size=4))
def test_any_lesson_trains_and_withholds_something_and_never_the_same(question: str, paraphrases: list[str]) -> None:
    trained, withheld = phrasings(line(*paraphrases, question=question))
    assert trained
    assert withheld
    assert not {normalise(text) for text in trained} & {normalise(text) for text in withheld}
