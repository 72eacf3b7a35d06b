"""Retention, compaction and vacuum: what is kept is kept, whoever reads and writes meanwhile."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.event import listen

from pipeline.config import FeedbackSettings
from pipeline.feedback.compaction import TidySealer, compact, ranges
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import Receipt, record_answer, record_feedback
from pipeline.feedback.keys import Key
from pipeline.feedback.records import NewEvent
from pipeline.feedback.sealer import Sealer, open_table, read_events, sealed_seq

NOW = {"keep_versions_hours": 0}


def fill(log: EventLog, count: int) -> None:
    log.append([NewEvent(kind="answer", body={"n": n}, source="eva") for n in range(count)])


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "feedback")


def test_small_files_become_one_and_old_ones_go(log: EventLog, table: str) -> None:
    fill(log, 12)
    Sealer(log, table, batch=2).drain()
    done = compact(table, log, FeedbackSettings(**NOW))
    assert (done.files_before, done.files_after, done.expired) == (6, 1, 0)
    assert len(list(Path(table).rglob("*.parquet"))) == 2  # and a checkpoint
    assert read_events(table, log, 0, 99) == log.after(0)
    fill(log, 1)
    assert (Sealer(log, table).drain(), sealed_seq(table)) == (1, 13)


def test_a_trickle_of_commits_leaves_few_files(log: EventLog, table: str) -> None:
    sealer = TidySealer(log, table, merged_after=5)
    for number in range(1, 13):
        fill(log, 1)
        assert sealer.drain() == 1
        assert sealer.drain() == 0
        assert sealed_seq(table) == number
    found = open_table(table)
    assert found is not None
    assert len(found.file_uris()) == 1 + 12 - 10
    assert read_events(table, log, 0, 99) == log.after(0)


def test_two_sealers_and_a_compactor_take_turns_on_one_table(log: EventLog, table: str) -> None:
    one, other = TidySealer(log, table, merged_after=3), Sealer(log, table)
    for round_ in range(6):
        fill(log, 2)
        assert (other if round_ % 2 else one).drain() == 2
        assert one.drain() == other.drain() == 0
        compact(table, log, FeedbackSettings(**NOW))
    assert read_events(table, log, 0, 99) == log.after(0)
    assert sealed_seq(table) == 12


def test_answers_expire_but_not_those_that_somebody_spoke_about(log: EventLog, table: str) -> None:
    key = Key("eva", "ask")
    silent, rated = (record_answer(log, key=key, question="q?", answer="a") for _ in range(2))
    record_feedback(log, response_id=str(rated.response_id), kind="rating", value=1, key=key)
    settings, later = FeedbackSettings(keep_answers_days=30, **NOW), datetime.now(UTC) + timedelta(days=31)
    assert compact(table, log, settings).expired == 0
    assert compact(table, log, settings, now=later).expired == 1
    for events in (log.after(0), read_events(table, log, 0, 99)):
        assert [event.seq for event in events] == [rated.seq, rated.seq + 1]
    assert log.response(str(silent.response_id)) is None
    assert compact(table, log, settings, now=later).expired == 0


def test_an_answer_that_somebody_speaks_about_meanwhile_stays(log: EventLog, table: str, sqlite_url: str) -> None:
    key, other = Key("eva", "ask"), EventLog(open_database(sqlite_url))
    silent, rated = (record_answer(log, key=key, question="q?", answer="a", lessons={"les": 1.0}) for _ in range(2))
    said: list[Receipt] = []

    def speak(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "EXISTS" in statement and not said:  # the expired ones have just been looked up
            response = str(rated.response_id)
            said.append(record_feedback(other, response_id=response, kind="rating", value=1, key=key))

    listen(log.engine, "after_cursor_execute", speak)
    later = datetime.now(UTC) + timedelta(days=91)
    assert compact(table, log, FeedbackSettings(**NOW), now=later).expired == 1
    assert log.response(str(silent.response_id)) is None
    assert log.response(str(rated.response_id)) == rated
    assert log.citing("default", "les") == [rated]
    other.engine.dispose()


def test_readers_and_writers_meanwhile_lose_nothing(log: EventLog, table: str) -> None:
    fill(log, 5)
    Sealer(log, table).drain()
    stop, failures = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            fill(log, 3)
            Sealer(log, table, batch=2).drain()

    def read() -> None:
        while not stop.is_set():
            sealed = sealed_seq(table)
            seen = [event.seq for event in read_events(table, log, 0, sealed)]
            if seen != list(range(1, sealed + 1)):
                failures.append((sealed, seen))

    threads = [threading.Thread(target=work) for work in (write, read)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        compact(table, log, FeedbackSettings(**NOW))
    stop.set()
    for thread in threads:
        thread.join(60)
    Sealer(log, table).drain()
    assert failures == []
    assert read_events(table, log, 0, log.head()) == log.after(0, limit=100_000)


def test_ranges() -> None:
    assert ranges([5, 1, 2, 3, 7, 8]) == [(1, 3), (5, 5), (7, 8)]
    assert ranges([]) == []
