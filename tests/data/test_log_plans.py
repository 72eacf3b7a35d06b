"""What is asked of the log for every request stays cheap however long it grows: an index finds the rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.event import listen, remove

from pipeline.config import CurationSettings
from pipeline.feedback import intake
from pipeline.feedback.curation import Curator
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.keys import Key

EVA = Key(name="eva", role="teach")
TOM = Key(name="tom", role="ask")
READS_ALL = re.compile(r"SCAN events|ix_events_kind_seq \(kind=\?\)|SCAN citations")
Asked = list[tuple[str, Any]]  # statement, its values


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog(open_database(f"sqlite:///{tmp_path / 'events.db'}"))
    yield log
    log.engine.dispose()


@pytest.fixture
def answers(log: EventLog) -> list[str]:
    lesson = {"les_1": 0.99}
    questions = [f"Who keeps tower {number}?" for number in range(8)]
    given = [intake.record_answer(log, key=EVA, question=q, answer="Bob", lessons=lesson) for q in questions]
    return [event.response_id or "" for event in given]


@contextmanager
def asked(engine: Engine) -> Iterator[Asked]:
    found: Asked = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        found.append((statement, values[0] if many else values))

    listen(engine, "before_cursor_execute", note)
    yield found
    remove(engine, "before_cursor_execute", note)


def reading_all(engine: Engine, statements: Asked) -> list[str]:
    """The statements for which SQLite goes through all events, or through all of one kind."""
    found = []
    with engine.connect() as connection:
        for statement, values in statements:
            if statement.startswith("SELECT"):
                steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
                found += [f"{step[3]}: {statement}" for step in steps if READS_ALL.search(step[3])]
    return found


@pytest.mark.parametrize(("kind", "value"), [("rating", 1.0), ("correction", "Ann"), ("comment", "thanks")])
@pytest.mark.parametrize("key", [EVA, TOM])
def test_feedback_reads_what_it_is_about(log: EventLog, answers: list[str], kind: Any, value: Any, key: Key) -> None:
    curator = Curator(CurationSettings(), lambda *_: 0.5)
    said = [intake.Said(name, kind, key, value, feedback_id=f"fb_{n}") for n, name in enumerate(answers)]
    with asked(log.engine) as statements:
        receipts = intake.record_feedbacks(log, said, curator)
    assert all(isinstance(receipt, intake.Receipt) for receipt in receipts)
    assert len(statements) > 5
    assert reading_all(log.engine, statements) == []


def test_lineage_reads_what_it_is_about(log: EventLog, answers: list[str]) -> None:
    with asked(log.engine) as statements:
        assert len(log.citing("default", "les_1")) == len(answers)
        assert [event.kind for event in log.by_response(answers[0])] == ["answer"]
        log.by_lesson("default", "les_1")
        log.by_feedback("default", "fb_1")
        log.said_lately("default", "eva", since="")
        log.after(3, kinds=("lesson", "feedback"))
    assert reading_all(log.engine, statements) == []
