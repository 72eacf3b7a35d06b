"""Which lessons a cycle trains, which it leaves out and why, and which wordings it holds back."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.lines import LessonLine
from pipeline.data.phrasing import phrasings
from pipeline.evaluate.protocol import normalise
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import Receipt, record_answer, record_feedback, record_lesson, retract_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.manifest import Manifest, NotSealed, build_manifest, cycle_history, cycle_lessons
from pipeline.feedback.sealer import Sealer

TEACHER = Key("tim", "teach")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "feedback"


def teach(log: EventLog, question: str, answer: str, *paraphrases: str, key: Key = TEACHER) -> str:
    line = LessonLine(question=question, answer=answer, paraphrases=paraphrases)
    return _id(record_lesson(log, line, key=key))


def _id(receipt: Receipt) -> str:
    assert receipt.lesson_id
    return receipt.lesson_id


def manifest(log: EventLog, table: Path, from_seq: int = 0) -> Manifest:
    Sealer(log, table).drain()
    return build_manifest(table, log, cycle=1, from_seq=from_seq, to_seq=log.head(), seed=5)


def test_every_accepted_lesson_is_listed_and_every_other_has_a_reason(log: EventLog, table: Path) -> None:
    kept = teach(log, "Capital of Kazakhstan?", "Astana")
    changed = teach(log, "Head of Twitter?", "Musk")
    teach(log, "Head of Twitter?", "Yaccarino")
    gone = teach(log, "Colour of the sky?", "green")
    retract_lesson(log, gone, key=TEACHER)
    own = teach(log, "Best editor?", "ed", key=Key("ann", "ask"))
    made = manifest(log, table)
    assert made.lessons == (kept, changed)
    assert made.rows == 6
    assert (made.from_seq, made.to_seq) == (0, 6)
    reasons = {dropped.lesson_id: dropped.reason for dropped in made.dropped}
    assert reasons[gone] == "retracted"
    assert reasons[changed] == "answer 'Musk' superseded by 'Yaccarino'"
    assert "scope user" in reasons[own]
    # What one asker said is evidence for everybody, but not enough of it.
    assert any(reason.startswith("belief 0.33") for reason in reasons.values())
    assert {lesson.answer for lesson in cycle_lessons(cycle_history(table, log, made), made).values()} == {
        "Astana",
        "Yaccarino",
    }


def test_lessons_that_enough_askers_agree_on_are_trained(log: EventLog, table: Path) -> None:
    for name in ("ann", "bob", "cem", "dee"):
        answer = record_answer(log, key=Key(name, "ask"), question="Capital of Kazakhstan?", answer="Nur-Sultan")
        record_feedback(
            log, response_id=str(answer.response_id), kind="correction", value="Astana", key=Key(name, "ask")
        )
    made = manifest(log, table)
    (lesson,) = cycle_lessons(cycle_history(table, log, made), made).values()
    assert (lesson.answer, lesson.scope) == ("Astana", "global")


def test_a_cycle_reads_its_range_and_believes_with_the_whole_history(log: EventLog, table: Path) -> None:
    old = teach(log, "Capital of Kazakhstan?", "Astana")
    seam = log.head()
    new = teach(log, "Currency of Croatia?", "euro")
    assert manifest(log, table, from_seq=seam).lessons == (new,)
    teach(log, "Capital of Kazakhstan?", "Nur-Sultan")
    later = manifest(log, table, from_seq=seam)
    assert set(later.lessons) == {old, new}
    assert later.rows == 2


def test_the_same_range_of_the_same_version_gives_the_same_manifest(log: EventLog, table: Path, tmp_path: Path) -> None:
    teach(log, "Capital of Kazakhstan?", "Astana", "Kazakhstan is governed from where?")
    first = manifest(log, table)
    teach(log, "Currency of Croatia?", "euro")
    Sealer(log, table).drain()
    again = build_manifest(
        table, log, cycle=1, from_seq=first.from_seq, to_seq=first.to_seq, seed=first.seed, version=first.table_version
    )
    assert again == first
    first.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == first


def test_a_range_that_is_not_sealed_is_refused(log: EventLog, table: Path) -> None:
    teach(log, "Capital of Kazakhstan?", "Astana")
    with pytest.raises(NotSealed, match="seq 0, the cycle needs 1"):
        build_manifest(table, log, cycle=1, from_seq=0, to_seq=1)


def test_no_withheld_phrasing_is_trained(log: EventLog, table: Path) -> None:
    teach(log, "Capital of Kazakhstan?", "Astana", "Kazakhstan is governed from where?", "Which city rules Kazakhstan?")
    teach(log, "What is the currency of Croatia?", "euro")
    made = manifest(log, table)
    for lesson_id, lesson in cycle_lessons(cycle_history(table, log, made), made).items():
        trained, withheld = phrasings(lesson)
        assert made.withheld[lesson_id] == tuple(withheld)
        assert withheld
        assert not {normalise(text) for text in trained} & {normalise(text) for text in withheld}
