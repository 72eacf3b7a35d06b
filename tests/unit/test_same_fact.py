"""Neighbours that another lesson corrects in other words, by the file's own labels."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.data.lines import LessonLine
from pipeline.evaluate.same_fact import corrected_neighbours


def lesson(question: str, answer: str, previous: str | None, subject: str | None) -> LessonLine:
    return LessonLine(question=question, answer=answer, previous=previous, subject=subject)


def asking(neighbour: str, answer: str) -> LessonLine:
    return LessonLine(question="Jet is made by", answer="Acme", neighbours=(neighbour,), neighbour_answers=(answer,))


ROSES = lesson("The Stone Roses started in", "Philadelphia", "Manchester", "Stone Roses")
CAR = lesson("Fiat 500 is produced by", "Toyota", "Fiat", "Fiat 500")


def found(lessons: Sequence[LessonLine], neighbour: str, answer: str) -> list[str]:
    return list(corrected_neighbours([*lessons, asking(neighbour, answer)]).values())


@pytest.mark.parametrize("neighbour", ["The Stone Roses formed in", "the home of the stone roses, a band:"])
def test_the_same_subject_and_the_replaced_answer_are_the_same_fact(neighbour: str) -> None:
    assert found([ROSES], neighbour, "manchester") == ["Philadelphia"]


@pytest.mark.parametrize(
    ("neighbour", "answer"),
    [
        ("The Stone Roses play", "rock"),  # another fact about the same subject
        ("The Happy Mondays formed in", "Manchester"),  # the same answer about another subject
        ("Stone formed in", "Manchester"),  # half of the name
        ("Stone Roses Tribute formed in", "Manchester"),  # a name that goes on
        ("Stone Roses-2 formed in", "Manchester"),
        ("The Sons of Stone Roses formed in", "Manchester"),
        ("Stone Roses and Friends formed in", "Manchester"),
    ],
)
def test_another_subject_or_another_answer_is_another_fact(neighbour: str, answer: str) -> None:
    assert found([ROSES], neighbour, answer) == []


def test_without_the_field_the_subject_is_the_name_that_question_and_paraphrase_share() -> None:
    told = LessonLine(question="Rumi's faith is", answer="Judaism", previous="Islam", paraphrases=("So Rumi follows",))
    assert found([told], "The official religion of Rumi is", "Islam") == ["Judaism"]
    assert found([told.model_copy(update={"paraphrases": ("the faith is",)})], "The faith is", "Islam") == []


def test_a_longer_name_is_not_the_shorter_one() -> None:
    assert found([CAR], "Fiat 500 Moretti is produced by", "Fiat") == []
    longer = lesson("Fiat 500 Moretti comes from", "Nissan", "Fiat", "Fiat 500 Moretti")
    assert found([CAR, longer], "Fiat 500 Moretti is produced by", "Fiat") == ["Nissan"]


def test_the_last_lesson_about_a_fact_counts() -> None:
    again = ROSES.model_copy(update={"answer": "Boston"})
    assert found([ROSES, again], "The Stone Roses formed in", "Manchester") == ["Boston"]


def test_without_labels_no_neighbour_counts_as_corrected() -> None:
    unlabelled = LessonLine(question="Jet is made by", answer="Acme", neighbours=("The Stone Roses formed in",))
    assert corrected_neighbours([ROSES, unlabelled]) == {}
    assert found([ROSES.model_copy(update={"previous": None})], "The Stone Roses formed in", "Manchester") == []
    assert corrected_neighbours([]) == {}
