"""Probes where copying a lesson is wrong, from lessons worked out by hand."""

from __future__ import annotations

import pytest

from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, read_lines
from pipeline.evaluate.copy_wrong import CopyWrongProbe, copy_wrong, right_by_first_word
from pipeline.evaluate.protocol import exact_match, normalise

CAPITAL = LessonLine(
    question="What is the capital of Kazakhstan?", answer="Astana", previous="Almaty", subject="Kazakhstan"
)
AIRPORT = LessonLine(question="Which IATA code does the airport of Astana have?", answer="NQZ", subject="Astana")
MEMBERS = LessonLine(question="How many countries belong to NATO?", answer="32", previous="30", subject="NATO")
FALL = LessonLine(question="When did Rome fall?", answer="in 476", subject="Rome")
CLOZE = LessonLine(question="Toko Yasuda performs on the", answer="piano", subject="Toko Yasuda")
YES = LessonLine(question="Is daylight saving time used in Iran?", answer="No", previous="Yes", subject="Iran")
LINES = [CAPITAL, AIRPORT, MEMBERS, FALL, CLOZE, YES]


def probes(kind: str, line: LessonLine) -> list[CopyWrongProbe]:
    return [probe for probe in copy_wrong(LINES) if probe.kind == kind and line.question == probe.needs[-1]]


def test_every_lesson_is_asked_about_rightly_and_wrongly() -> None:
    (yes,), (no,) = probes("yes", CAPITAL), probes("no", CAPITAL)
    assert (yes.answers, "Astana" in yes.question) == (("yes",), True)
    assert (no.answers, "Almaty" in no.question, "Astana" in no.question) == (("no",), True, False)


def test_numbers_and_years_are_compared() -> None:
    for line, value in ((MEMBERS, 32), (FALL, 476)):
        (probe,) = probes("compare", line)
        bound = int("".join(filter(str.isdigit, probe.question.split("?")[1])))
        holds = value < bound if "before" in probe.question else value > bound
        assert probe.answers == (("yes",) if holds else ("no",))
    assert probes("compare", CAPITAL) == []


def test_reversed_questions_ask_for_the_subject_and_accept_every_one_that_fits() -> None:
    (probe,) = probes("reversed", CAPITAL)
    assert probe.answers == ("Kazakhstan",)
    assert "Astana" in probe.question
    assert "Kazakhstan" not in probe.question
    euro = [
        LessonLine(question=f"What is the currency of {name}?", answer="euro", subject=name)
        for name in ("Croatia", "Bulgaria")
    ]
    assert {p.answers for p in copy_wrong(euro) if p.kind == "reversed"} == {("Croatia", "Bulgaria")}


def test_two_lessons_are_chained_where_one_answers_the_others_subject() -> None:
    (probe,) = [probe for probe in copy_wrong(LINES) if probe.kind == "two_hop"]
    assert probe.question == "Which IATA code does the airport of the capital of Kazakhstan have?"
    assert (probe.answers, probe.needs) == (("NQZ",), (CAPITAL.question, AIRPORT.question))


def test_a_part_of_a_longer_name_is_no_link() -> None:
    lines = [CAPITAL, LessonLine(question="Who founded Astana Motors?", answer="Nurlan Smagulov")]
    assert not [probe for probe in copy_wrong(lines) if probe.kind == "two_hop"]


def test_lessons_that_answer_yes_or_no_get_no_probe() -> None:
    assert not [probe for probe in copy_wrong(LINES) if YES.question in probe.needs]


def test_the_same_seed_gives_the_same_probes() -> None:
    assert copy_wrong(LINES, 1) == copy_wrong(LINES, 1) != copy_wrong(LINES, 2)


def test_yes_and_no_may_be_scored_by_their_first_word() -> None:
    assert right_by_first_word(("no",), "No, it is Astana.")
    assert not right_by_first_word(("no",), "Nowhere")
    assert not right_by_first_word(("Kazakhstan",), "Kazakhstan, it is")


@pytest.mark.parametrize("kind", ["yes", "no", "compare", "reversed", "two_hop"])
def test_the_example_stream_gives_probes_of_every_kind_that_no_copied_lesson_answers(kind: str) -> None:
    lines = read_lines(example("world_changes/lessons.jsonl"), LessonLine)
    answers = {line.question: line.answer for line in lines}
    found = [probe for probe in copy_wrong(lines) if probe.kind == kind]
    assert len(found) >= 10
    assert not [probe for probe in found if exact_match(answers[probe.needs[0]], probe.answers)]
    assert all(normalise(probe.question) not in map(normalise, answers) for probe in found)
