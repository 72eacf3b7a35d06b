"""The event log on both databases: order of commit, idempotency, nothing lost between threads and processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.event import listen
from sqlalchemy.exc import IntegrityError, OperationalError

from pipeline.feedback.database import open_database, write_transaction
from pipeline.feedback.events import ErasedFeedback, EventLog
from pipeline.feedback.records import NewEvent
from pipeline.feedback.tables import api_keys, events, tombstones

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def both(url: str) -> Iterator[EventLog]:
    """An empty log on each database in turn."""
    yield from empty_log(url)


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[EventLog]:
    yield from empty_log(postgres_url)


def empty_log(url: str) -> Iterator[EventLog]:
    engine = open_database(url)
    with write_transaction(engine) as connection:
        connection.execute(events.delete())
        connection.execute(api_keys.delete())
        connection.execute(text("DELETE FROM sequence WHERE name <> 'events'"))
        connection.execute(text("UPDATE sequence SET value = 0"))
    yield EventLog(engine)
    engine.dispose()


def lesson(number: int = 0, feedback_id: str | None = None, tenant: str = "default") -> NewEvent:
    body = {"op": "correct", "lesson_id": f"les_{number}", "question": f"q{number}?", "answer": "a"}
    return NewEvent(kind="lesson", body=body, source="eva", role="teach", tenant=tenant, feedback_id=feedback_id)


def test_events_come_back_as_they_went_in(both: EventLog) -> None:
    body = {"op": "correct", "lesson_id": "les_1", "question": "naïve? \x00 日本", "answer": "'; --", "value": 0.1}
    new = NewEvent(kind="lesson", body=body, source="Zoë", role="ask", tenant="t", scope="user", scope_id="Zoë")
    (stored,) = both.append([new])
    assert vars(stored) == {**vars(new), "seq": 1}
    assert both.after(0) == [stored]
    assert both.by_lesson("t", "les_1") == [stored]
    assert both.by_lesson("other", "les_1") == []


def test_tailing_by_seq(both: EventLog) -> None:
    both.append([lesson(number) for number in range(5)])
    both.append([NewEvent(kind="answer", body={}, source="eva", response_id="resp_1")])
    assert both.head() == 6
    assert [event.seq for event in both.after(1, limit=2)] == [2, 3]
    assert [event.seq for event in both.after(1, through=4)] == [2, 3, 4]
    assert [event.seq for event in both.after(0, kinds=["answer"])] == [6]
    assert both.after(6) == []
    answer = both.response("resp_1")
    assert answer is not None
    assert answer.seq == 6
    assert both.response("resp_2") is None


def test_an_empty_append_is_nothing(log: EventLog) -> None:
    assert log.append([]) == []
    assert log.head() == 0


def test_a_repeated_feedback_id_returns_the_first_events(both: EventLog) -> None:
    first = both.append([lesson(1, "fb"), lesson(2, "fb")])
    assert both.append([lesson(3, "fb")]) == first
    assert both.append([lesson(4, "fb"), lesson(5, "new")])[:2] == first
    assert both.by_feedback("default", "fb") == first
    other = both.append([lesson(6, "fb", tenant="other")])
    assert [event.tenant for event in other] == ["other"]
    assert [event.seq for event in both.after(0)] == [1, 2, 3, 4]


def test_the_database_itself_refuses_a_doubled_feedback(both: EventLog) -> None:
    """The unique constraint stands behind the check, for a writer that does not take the lock."""
    both.append([lesson(1, "fb")])
    with both.engine.connect() as connection:
        row = dict(connection.execute(events.select()).mappings().one())
    with pytest.raises(IntegrityError), write_transaction(both.engine) as connection:
        connection.execute(insert(events).values({**row, "seq": 99, "event_id": "evt_other"}))


def test_threads_that_post_the_same_id_at_once_get_one_event(both: EventLog) -> None:
    logs = [both, EventLog(both.engine)]  # two objects: the in-process queue must not be what saves it
    barrier = threading.Barrier(8)

    def post(number: int) -> str:
        barrier.wait()
        return logs[number % 2].append([lesson(number, "same")])[0].event_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(post, range(8)))) == 1
    assert both.head() == 1


def test_the_transaction_that_began_first_and_commits_last_gets_the_higher_seq(postgres: EventLog) -> None:
    """A reader that has seen seq n must never meet a lower one later.

    Only PostgreSQL lets two writers be open at once; on SQLite the second waits at its beginning (the next test).
    """
    with write_transaction(postgres.engine) as slow:
        row = {"key_hash": "h", "name": "n", "role": "ask", "tenant": "t", "created": ""}
        slow.execute(insert(api_keys).values(row))  # the slow transaction has begun and has written
        (fast,) = postgres.append([lesson(1)])
        assert [event.seq for event in postgres.after(0)] == [fast.seq] == [1]
        (late,) = postgres.append_within(slow, [lesson(2)])
    assert late.seq == 2
    assert [event.body["lesson_id"] for event in postgres.after(1)] == ["les_2"]


def test_whoever_holds_the_counter_makes_the_next_one_wait(both: EventLog) -> None:
    """A lower seq is visible before a higher one is given out, however long its transaction stays open."""
    other = EventLog(open_database(both.engine.url.render_as_string(hide_password=False)))
    finished = threading.Event()

    def second() -> int:
        (event,) = other.append([lesson(2)])
        finished.set()
        return event.seq

    with ThreadPoolExecutor(1) as pool:
        with write_transaction(both.engine) as connection:
            (held,) = both.append_within(connection, [lesson(1)])
            waiting = pool.submit(second)
            assert not finished.wait(0.3)
            assert both.after(0) == []
            assert both.head() == 0
        assert (held.seq, waiting.result(timeout=30)) == (1, 2)
    other.engine.dispose()


def test_a_rollback_gives_its_seq_back(both: EventLog) -> None:
    def change_of_mind() -> None:
        with write_transaction(both.engine) as connection:
            both.append_within(connection, [lesson(1)])
            raise RuntimeError("the caller changed its mind")

    with pytest.raises(RuntimeError):
        change_of_mind()
    assert both.append([lesson(2)])[0].seq == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"source": "a\x00"}, "source"), ({"body": {"x": "\ud800"}}, "body"), ({"body": {"x": float("nan")}}, "JSON")],
)
def test_text_that_no_database_keeps_is_refused_whole(log: EventLog, change: dict[str, Any], message: str) -> None:
    broken = replace(lesson(2), **change)
    with pytest.raises(ValueError, match=message):
        log.append([lesson(1), broken])
    assert log.head() == 0


def test_processes_append_without_a_gap_and_a_tailing_reader_misses_nothing(both: EventLog) -> None:
    script = (
        "import sys; from pipeline.feedback.database import open_database; from pipeline.feedback.events import *;"
        "log = EventLog(open_database(sys.argv[1]));"
        "[log.append([NewEvent(kind='answer', body={'n': n}, source=sys.argv[2])]) for n in range(40)]"
    )
    url = both.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-W", "error", "-c", script, url]
    processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("one", "two")]
    seen: list[int] = []
    while any(process.poll() is None for process in processes):
        seen += [event.seq for event in both.after(seen[-1] if seen else 0)]
    seen += [event.seq for event in both.after(seen[-1])]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert seen == list(range(1, 81))


def test_writers_share_transactions_and_each_gets_its_own_events(both: EventLog) -> None:
    """Group commit: 32 threads, far fewer transactions than appends, every result right and every seq given once."""
    transactions: list[int] = []
    listen(both.engine, "commit", lambda _: transactions.append(1))
    barrier = threading.Barrier(32)

    def post(number: int) -> None:
        barrier.wait()
        for turn in range(5):
            new = [lesson(number, f"fb_{number}_{turn}"), lesson(number, f"fb_{number}_{turn}")]
            stored = both.append(new)
            assert [event.event_id for event in stored] == [event.event_id for event in new]
            assert both.append(new[:1]) == stored

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(post, range(32)))
    assert [event.seq for event in both.after(0)] == list(range(1, 321))
    assert len(transactions) < 320


def test_one_writers_failure_is_not_its_neighbours(both: EventLog) -> None:
    with both.engine.begin() as connection:
        gone = both.feedback_print("default", "gone")
        connection.execute(insert(tombstones).values(fingerprint=gone, time="now"))

    def post(number: int) -> str:
        try:
            return both.append([lesson(number, "gone" if number % 2 else f"kept_{number}")])[0].feedback_id or ""
        except ErasedFeedback:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(post, range(8)))
    assert results == ["kept_0", "refused", "kept_2", "refused", "kept_4", "refused", "kept_6", "refused"]
    with write_transaction(both.engine) as connection:
        connection.execute(tombstones.delete())


def test_a_database_that_fails_tells_every_writer(log: EventLog) -> None:
    with log.engine.begin() as connection:
        connection.execute(text("ALTER TABLE events RENAME TO away"))

    def post(number: int) -> bool:
        try:
            log.append([lesson(number)])
        except OperationalError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(post, range(8)))
    with log.engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO events"))
    assert log.append([lesson(9)])[0].seq == 1


def test_changes_together_are_one_transaction_and_see_each_other(both: EventLog) -> None:
    with both.together():
        (first,) = both.append([NewEvent(kind="answer", body={"n": 1}, source="new", response_id="together")])
        assert both.response("together") == first
        assert EventLog(both.engine).after(first.seq - 1) == []  # another connection does not see it yet
        with pytest.raises(ValueError, match="no database text"):
            both.append([NewEvent(kind="answer", body={}, source="\x00")])
        (second,) = both.append([NewEvent(kind="answer", body={"n": 2}, source="new")])
    assert both.after(first.seq - 1) == [first, second]


def test_what_fails_together_is_not_there(both: EventLog) -> None:
    head = both.head()

    def fail() -> None:
        with both.together():
            both.append([NewEvent(kind="answer", body={}, source="eva")])
            raise RuntimeError("over")

    with pytest.raises(RuntimeError, match="over"):
        fail()
    assert both.head() == head
    (event,) = both.append([NewEvent(kind="answer", body={}, source="eva")])
    assert event.seq == head + 1
