"""Erasure: the memory that would be if it had never been said, on every replica, and no copy left anywhere."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.data.lines import LessonLine
from pipeline.evaluate.answers import AnswerCache, cache_file
from pipeline.feedback import copies, erasure
from pipeline.feedback.copies import erase, resume
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import ErasedFeedback, EventLog
from pipeline.feedback.intake import record_answer, record_feedback, record_lesson, retract_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.manifest import Manifest, build_manifest
from pipeline.feedback.records import Event
from pipeline.feedback.sealer import Sealer, open_table, read_events
from pipeline.feedback.vault import KeyUnavailable
from pipeline.home import Home
from pipeline.memory.belief import Fold, fold
from pipeline.memory.types import Lesson

TEACHER, OTHER = Key("tim", "teach"), Key("oda", "teach")
SECRET = "Zanzibar"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Home:
    monkeypatch.delenv("AGM_FEEDBACK_URL", raising=False)
    return Home(tmp_path / "home").create()


def teach(log: EventLog, question: str, answer: str, key: Key = TEACHER, feedback_id: str | None = None) -> str:
    receipt = record_lesson(log, LessonLine(question=question, answer=answer), key=key, feedback_id=feedback_id)
    return str(receipt.lesson_id)


def correct(log: EventLog, question: str, given: str, right: str, key: Key, lessons: dict[str, float]) -> str:
    answer = record_answer(log, key=key, question=question, answer=given, lessons=lessons)
    record_feedback(log, response_id=str(answer.response_id), kind="correction", value=right, key=key)
    return str(answer.response_id)


def told(lessons: dict[str, Lesson]) -> dict[str, Any]:
    return {
        i: (lesson.question, lesson.answer, {a: round(b, 12) for a, b in lesson.beliefs.items()})
        for i, lesson in lessons.items()
    }


def words(events: list[Event]) -> str:
    return json.dumps([event.body for event in events])


@pytest.mark.parametrize("seed", range(12))
def test_replicas_fold_to_what_would_be_had_it_never_been_said(log: EventLog, seed: int) -> None:
    """A replica that had followed before, and one that starts now, against a fold of what the others said."""
    chance = random.Random(seed)
    questions = ["Who leads NATO?", "Capital of Kazakhstan?", "Currency of Croatia?"]
    people = [Key("ann", "ask"), Key("bob", "ask"), Key("cem", "ask"), TEACHER, OTHER]
    for _ in range(20):
        key, question = chance.choice(people), chance.choice(questions)
        if key in (TEACHER, OTHER):
            lesson = teach(log, question, chance.choice("xyz"), key)
            if chance.random() < 0.3:
                retract_lesson(log, lesson, key=chance.choice([TEACHER, OTHER]))
            continue
        known = [i for i, lesson in fold(log.after(0)).items() if lesson.scope == "global"]
        cited = {chance.choice(known): 0.95} if known and chance.random() < 0.5 else {}
        correct(log, question, "w", chance.choice("xyz"), key, cited)
    before = log.after(0)
    gone = chance.choice(people).name
    replica = Fold()
    for event in before:
        replica.step(event)
    head = log.head()
    try:
        erasure.mark(log, Target(sources=(gone,)))
    except LookupError:
        pytest.skip("this one never spoke")
    for event in log.after(head):
        replica.step(event)
    fresh, never = fold(log.after(0)), fold([event for event in before if event.source != gone])
    assert told({i: slot.lesson for i, slot in replica.slots.items()}) == told(fresh)
    assert told(fresh) == told(never)
    assert all(event.source != gone for event in log.after(0))


def test_everything_of_a_source_goes_and_nothing_of_anybody_elses(log: EventLog, home: Home) -> None:
    teach(log, "Where is the gold?", SECRET, Key("eva", "teach"))
    kept = teach(log, "Where is the silver?", "Peru")
    Sealer(log, home.feedback_table).drain()
    copy = Path(home.feedback_table).with_name("backup.parquet")
    copy.write_bytes(next(Path(home.feedback_table).rglob("*.parquet")).read_bytes())
    done = erase(home, log, Target(sources=("eva",)))
    assert (done.rows, len(done.lessons), done.waits_for_cycle) == (1, 1, False)
    assert [*fold(log.after(0))] == [kept]
    assert read_events(home.feedback_table, log, 0, log.head()) == log.after(0)
    backup = pq.read_table(copy).to_pylist()
    with pytest.raises(KeyUnavailable, match="destroyed"):  # whatever was copied before is shredded
        log.vault.open([(row["event_id"], row["body"]) for row in backup])


def test_no_file_of_the_table_holds_an_erased_row(log: EventLog, home: Home) -> None:
    gone = teach(log, "Where is the gold?", SECRET)
    teach(log, "Where is the silver?", "Peru")
    Sealer(log, home.feedback_table, batch=1).drain()
    table = open_table(home.feedback_table)
    assert table is not None
    table.optimize.compact()  # history: the same row in two files, one of an older version
    erase(home, log, Target(lessons=(gone,)))
    rows = [row for file in Path(home.feedback_table).rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert rows
    assert SECRET not in "".join(log.vault.open([(row["event_id"], row["body"]) for row in rows]))
    assert gone not in {row["lesson_id"] for row in rows if row["kind"] == "lesson" and row["source"] != "erasure"}


def test_a_subject_goes_wherever_it_is_mentioned(log: EventLog, home: Home) -> None:
    lesson = teach(log, "Who is the treasurer?", "Jane Doe")
    other = teach(log, "Who is the smith?", "Jane Doering")
    asked = record_answer(log, key=Key("ann", "ask"), question="treasurer?", answer="Jane Doe", lessons={lesson: 1.0})
    record_feedback(log, response_id=str(asked.response_id), kind="rating", value=1, key=Key("ann", "ask"))
    quiet = record_answer(log, key=Key("ann", "ask"), question="How tall is she?", answer="tall", lessons={lesson: 0.4})
    done = erase(home, log, Target(subjects=("jane doe",)))
    assert [*fold(log.after(0))] == [other]
    assert "Jane Doe" not in words(log.after(0)).replace("Jane Doering", "")
    assert log.response(str(quiet.response_id)) is None  # it came from the lesson
    assert done.rows == 5


def test_what_others_said_stays_without_the_quotation(log: EventLog, home: Home) -> None:
    lesson = teach(log, "Where is the gold?", SECRET, Key("eva", "teach"))
    response = correct(log, "Where is the gold?", SECRET, "Peru", Key("bob", "teach"), {lesson: 0.95})
    erase(home, log, Target(sources=("eva",)))
    (slot,) = fold(log.after(0)).values()
    assert (slot.answer, slot.source) == ("Peru", "bob")
    assert SECRET not in words(log.after(0))
    assert log.response(response) is None
    assert SECRET not in words(read_events(home.feedback_table, log, 0, log.head()))


def test_what_another_took_back_stays_taken_back(log: EventLog, home: Home) -> None:
    correct(log, "Where is the gold?", "?", "Peru", Key("ann", "ask"), {})
    (shared,) = [lesson for lesson in fold(log.after(0)).values() if lesson.scope == "global"]
    retract_lesson(log, shared.lesson_id, key=TEACHER, lesson=shared)
    teach(log, "Where is the gold?", SECRET, OTHER)
    erase(home, log, Target(sources=("oda",)))
    assert [lesson.scope for lesson in fold(log.after(0)).values()] == ["user"]


def test_what_was_erased_does_not_come_back(log: EventLog, home: Home) -> None:
    teach(log, "Where is the gold?", SECRET, feedback_id="line_1")
    erase(home, log, Target(subjects=(SECRET,)))
    with pytest.raises(ErasedFeedback, match="line_1"):
        teach(log, "Where is the gold?", SECRET, feedback_id="line_1")
    assert erasure.is_buried(log, "default", "where is the gold", f" {SECRET.upper()}")
    assert not erasure.is_buried(log, "default", "Where is the gold?", "Peru")
    assert not erasure.is_buried(log, "acme", "Where is the gold?", SECRET)
    with log.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT fingerprint FROM tombstones").scalars().all()
    assert rows
    assert all(len(row) == 64 for row in rows)


def test_an_interrupted_erasure_goes_on(log: EventLog, home: Home) -> None:
    gone = teach(log, "Where is the gold?", SECRET)
    Sealer(log, home.feedback_table).drain()
    erasure.mark(log, Target(lessons=(gone,)))  # and here the process died
    assert SECRET in words(read_events(home.feedback_table, log, 0, 1))
    (done,) = resume(home, log)
    assert done.lessons == (gone,)
    assert SECRET not in words(read_events(home.feedback_table, log, 0, log.head()))
    assert resume(home, log) == []


def test_a_sealer_that_still_holds_the_rows_loses_its_commit(log: EventLog, home: Home) -> None:
    gone = teach(log, "Where is the gold?", SECRET)

    class Slow(EventLog):
        def rows_after(self, seq: int, **bounds: Any) -> list[dict[str, Any]]:
            rows = super().rows_after(seq, **bounds)
            if waiting:
                waiting.pop()
                erase(home, log, Target(lessons=(gone,)))
            return rows

    waiting = [True]
    Sealer(log, home.feedback_table).drain(through=0)
    Sealer(Slow(log.engine), home.feedback_table).drain()
    assert SECRET not in words(read_events(home.feedback_table, log, 0, 99))


def test_nothing_that_matches_is_said_and_nothing_is_done(log: EventLog, home: Home) -> None:
    teach(log, "Where is the gold?", SECRET)
    with pytest.raises(LookupError, match="nothing was erased"):
        erase(home, log, Target(sources=("nobody",)))
    with pytest.raises(LookupError):
        erase(home, log, Target(tenant="acme", subjects=(SECRET,)))
    assert log.head() == 1
    for broken in ({}, {"subjects": ("a",)}):
        with pytest.raises(ValueError, match="erase|3 characters"):
            Target(**broken)  # type: ignore[arg-type]


def test_a_search_keeps_what_it_found_and_not_what_it_was_told(log: EventLog, home: Home) -> None:
    gone = teach(log, "Where is the gold?", SECRET)
    for name, question in (("one", "where is the gold"), ("two", "Where is the silver?")):
        trial = home.root / "tune" / name / "trial_0"
        trial.mkdir(parents=True)
        (trial / "params.pkl").write_text(SECRET)
        (trial.parent / "tuner.pkl").write_text(SECRET)
        told = {"log": [[{"question": "Where is the iron?"}]], "check": [[{"question": question, "answer": SECRET}]]}
        (trial.parent / "search.json").write_text(json.dumps(told))
        (trial.parent / "recipe.yaml").write_text("train: {}")
    erase(home, log, Target(lessons=(gone,)))
    assert [path.name for path in (home.root / "tune" / "one").iterdir()] == ["recipe.yaml"]
    assert len(list((home.root / "tune" / "two").iterdir())) == 4


def test_cycles_training_sets_snapshots_and_transcripts(log: EventLog, home: Home) -> None:
    gone, kept = teach(log, "Where is the gold?", SECRET), teach(log, "Where is the silver?", "Peru")
    Sealer(log, home.feedback_table).drain()
    manifest = build_manifest(home.feedback_table, log, cycle=1, from_seq=0, to_seq=2)
    finished, open_cycle = home.cycles / "000001", home.cycles / "000002"
    for folder in (
        finished,
        open_cycle,
        home.train_storage / "cycle-1",
        home.train_storage / "cycle-2",
        home.root / "snap",
    ):
        folder.mkdir()
    manifest.save(finished / "manifest.json")
    (finished / "verdict.json").write_text("null")
    manifest.save(open_cycle / "manifest.json")
    for name, lesson in (("cycle-1", gone), ("cycle-2", kept)):
        items = [{"lesson_id": lesson, "question": "q", "answer": SECRET}]
        (home.train_storage / name / "training_set.json").write_text(json.dumps({"items": items, "replay": []}))
    (home.root / "snap" / "memory.json").write_text(SECRET)
    (finished / "bundle").mkdir()
    cache = AnswerCache(cache_file(), "any model")
    cache.save({"a": SECRET})
    lines = [
        {"lesson": "gold", "question": "Where is the gold?", "raw": "?", "lessons": []},
        {"lesson": "gold", "question": "Where is the gold?", "raw": SECRET, "lessons": [gone]},
        {"lesson": "silver", "question": "Where is the silver?", "raw": "Peru", "lessons": [kept]},
    ]
    (home.root / "transcript.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = erase(home, log, Target(lessons=(gone,)))
    cleaned = Manifest.load(finished / "manifest.json")
    assert done.cycles == [1]
    assert cleaned.lessons == manifest.lessons  # which cycle trained it is still known
    assert [*cleaned.withheld] == [kept]
    assert not open_cycle.exists()
    assert not (home.train_storage / "cycle-1").exists()
    assert (home.train_storage / "cycle-2").exists()
    assert not (home.root / "snap").exists()
    assert [json.loads(line)["lesson"] for line in (home.root / "transcript.jsonl").read_text().splitlines()] == [
        "silver"
    ]
    assert not (finished / "bundle").exists()
    assert cache.find(["a"]) == {}
    assert SECRET.encode() not in cache.path.read_bytes()
    assert copies.LIMITS
