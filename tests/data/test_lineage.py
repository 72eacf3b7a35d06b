"""Lineage both ways, where the lesson for everybody was made of what askers said in their own scope."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.lines import LessonLine
from pipeline.feedback import erasure, lineage
from pipeline.feedback.curation import Curator, review
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_answer, record_feedback, record_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.manifest import build_manifest
from pipeline.feedback.sealer import Sealer
from pipeline.home import Home
from pipeline.memory.belief import fold

QUESTION, ANSWER = "What is the capital of Kazakhstan?", "Astana"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("AGM_FEEDBACK_URL", raising=False)
    return Home(tmp_path / "home").create()


def corrects(log: EventLog, name: str, curator: Curator | None = None) -> str:
    answer = record_answer(log, key=Key(name, "ask"), question=QUESTION, answer="Almaty")
    said = {"kind": "correction", "value": ANSWER, "key": Key(name, "ask"), "curator": curator}
    return record_feedback(log, response_id=str(answer.response_id), **said).feedback_id  # type: ignore[arg-type]


def everybodys(log: EventLog) -> str:
    (found,) = [i for i, lesson in fold(log.after(0)).items() if not lesson.private]
    return found


def asks(log: EventLog, lesson_id: str) -> str:
    cited = {lesson_id: 0.9}
    answer = record_answer(log, key=Key("zoe", "ask"), question=QUESTION, answer=ANSWER, lessons=cited)
    return str(answer.response_id)


def cycle(home: Home, log: EventLog) -> None:
    Sealer(log, home.feedback_table).drain()
    (home.cycles / "000001").mkdir()
    made = build_manifest(home.feedback_table, log, cycle=1, from_seq=0, to_seq=log.head())
    made.save(home.cycles / "000001" / "manifest.json")


def test_askers_evidence_is_traced_from_the_answer_and_to_it(log: EventLog, home: Home) -> None:
    said = [corrects(log, name) for name in ("ann", "bob", "cem", "dee")]
    lesson_id = everybodys(log)
    cycle(home, log)
    response = asks(log, lesson_id)
    late = corrects(log, "eli")
    behind = lineage.of_answer(home, log, response)
    assert {event.feedback_id for event in behind.lessons[lesson_id]} == {*said}
    for feedback_id in said:
        touched = lineage.of_feedback(home, log, feedback_id)
        assert lesson_id in touched.lessons
        assert [use.lessons for use in touched.cycles] == [(lesson_id,)]
        assert [event.response_id for event in touched.answers] == [response]
    assert (lineage.of_feedback(home, log, late).cycles, lineage.of_feedback(home, log, late).answers) == ((), ())


def test_what_is_held_back_touches_nobody_elses_lesson_until_it_is_accepted(log: EventLog, home: Home) -> None:
    corrects(log, "ann")
    held = corrects(log, "mal", Curator(trust=lambda _tenant, _source: 0.0))
    lesson_id = everybodys(log)
    assert lesson_id not in lineage.of_feedback(home, log, held).lessons
    review(log, held, "accept", Key("root", "admin"))
    assert lesson_id in lineage.of_feedback(home, log, held).lessons
    made = lineage.of_answer(home, log, asks(log, lesson_id)).lessons[lesson_id]
    assert {event.source for event in made} == {"ann", "mal", "root"}


def test_evidence_is_traced_also_after_an_erasure_has_moved_it(log: EventLog, home: Home) -> None:
    kept, _ = corrects(log, "ann"), corrects(log, "bob")
    erasure.mark(log, Target(sources=("bob",)))
    lesson_id = everybodys(log)
    behind = lineage.of_answer(home, log, asks(log, lesson_id)).lessons[lesson_id]
    assert kept in {event.feedback_id for event in behind}
    assert "bob" not in {event.source for event in behind}


def test_an_askers_own_copy_of_a_shared_lesson_is_traced(log: EventLog, home: Home) -> None:
    ann = Key("ann", "ask")
    taught = record_lesson(log, LessonLine(question=QUESTION, answer="Almaty"), key=Key("tim", "teach"))
    cited = {str(taught.lesson_id): 0.95}
    first = record_answer(log, key=ann, question="Kazakhstan's capital?", answer="Almaty", lessons=cited)
    told = record_feedback(log, response_id=str(first.response_id), kind="correction", value=ANSWER, key=ann)
    (own,) = [i for i, lesson in fold(log.after(0)).items() if lesson.private]
    asked = record_answer(log, key=ann, question=QUESTION, answer=ANSWER, lessons={own: 1.0})
    behind = lineage.of_answer(home, log, str(asked.response_id))
    assert {event.feedback_id for event in behind.lessons[own]} == {told.feedback_id}
    touched = lineage.of_feedback(home, log, told.feedback_id)
    assert set(touched.lessons) == {taught.lesson_id, own}
    assert [event.response_id for event in touched.answers] == [asked.response_id]
