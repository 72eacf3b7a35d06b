"""The life of a log on PostgreSQL beyond appending: erasure, retention, lineage, review, rotation."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from pipeline.config import FeedbackSettings
from pipeline.data.lines import LessonLine
from pipeline.feedback import lineage
from pipeline.feedback.compaction import compact
from pipeline.feedback.copies import erase
from pipeline.feedback.curation import Curator, review
from pipeline.feedback.database import open_database
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_answer, record_feedback, record_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.sealer import Sealer, read_events
from pipeline.home import Home
from pipeline.memory.belief import fold

TIM, ANN = Key("tim", "teach"), Key("ann", "ask")


@pytest.fixture
def home(home_root: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("AGM_FEEDBACK_URL", raising=False)
    return Home(home_root).create()


@pytest.fixture
def log(home: Home, postgres_url: str) -> Iterator[EventLog]:
    """A database of its own; the master keys lie in the home."""
    base = make_url(postgres_url).set(drivername="postgresql+psycopg")
    server = create_engine(base, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS life WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE life"))
    server.dispose()
    engine = open_database(base.set(database="life").render_as_string(hide_password=False))
    yield EventLog(engine)
    engine.dispose()


def test_an_erasure_leaves_what_others_said(log: EventLog, home: Home) -> None:
    record_lesson(log, LessonLine(question="Where is the gold?", answer="Zanzibar"), key=Key("eva", "teach"))
    kept = record_lesson(log, LessonLine(question="Where is the gold?", answer="Peru"), key=TIM)
    Sealer(log, home.feedback_table).drain()
    done = erase(home, log, Target(sources=("eva",)))
    assert (done.rows, done.lessons) == (1, (kept.lesson_id,))
    assert [lesson.answer for lesson in fold(log.after(0)).values()] == ["Peru"]
    sealed = read_events(home.feedback_table, log, 0, log.head())
    assert sealed == log.after(0)
    assert "Zanzibar" not in str(sealed)


def test_answers_expire_and_askers_are_traced(log: EventLog, home: Home) -> None:
    held = Curator(trust=lambda _tenant, _source: 0.0)
    said = []
    for curator in (None, held):
        answer = record_answer(log, key=ANN, question="Capital?", answer="Almaty")
        told = {"kind": "correction", "value": "Astana", "key": ANN, "curator": curator}
        said.append(record_feedback(log, response_id=str(answer.response_id), **told).feedback_id)  # type: ignore[arg-type]
    review(log, said[1], "accept", Key("root", "admin"))
    silent = record_answer(log, key=ANN, question="Capital?", answer="Astana")
    later = datetime.now(UTC) + timedelta(days=91)
    assert compact(home.feedback_table, log, FeedbackSettings(keep_versions_hours=0), now=later).expired == 1
    assert log.response(str(silent.response_id)) is None
    (shared,) = [i for i, lesson in fold(log.after(0)).items() if not lesson.private]
    assert all(shared in lineage.of_feedback(home, log, feedback_id).lessons for feedback_id in said)


def test_a_rotation_keeps_everything_readable(log: EventLog, home: Home) -> None:
    record_answer(log, key=ANN, question="Capital?", answer="Astana")
    assert (home.root / "master_keys.json").exists()
    assert log.rotate_master_key() == 1
    assert EventLog(log.engine).after(0)[0].body["answer"] == "Astana"
