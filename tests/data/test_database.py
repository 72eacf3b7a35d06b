"""Opening: the schema, the settings that make an acknowledgement durable, and who is turned away."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from pipeline.feedback.database import DatabaseError, open_database, write_transaction
from pipeline.feedback.tables import metadata

ROOT = Path(__file__).parents[2]


def test_migrations_create_the_tables_that_queries_use(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_sqlite_is_durable_at_commit(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
        assert connection.execute(text("PRAGMA busy_timeout")).scalar() == 30_000


def test_opening_again_changes_nothing(sqlite_url: str, engine: Engine) -> None:
    before = sorted(inspect(engine).get_table_names())
    again = open_database(sqlite_url)
    assert sorted(inspect(again).get_table_names()) == before
    again.dispose()


@pytest.mark.parametrize(
    ("url", "nodes", "fix"),
    [
        ("sqlite:////nowhere/events.db", 2, "AGM_EVENTS_URL"),
        ("sqlite://", 1, "sqlite:///PATH"),
        ("mysql://localhost/events", 1, "postgresql://"),
    ],
)
def test_an_unfit_database_is_refused_with_the_fix(url: str, nodes: int, fix: str) -> None:
    with pytest.raises(DatabaseError, match=fix):
        open_database(url, nodes=nodes)


def test_processes_and_threads_may_open_a_new_database_at_once(sqlite_url: str) -> None:
    script = (
        "import sys; from pipeline.feedback.database import open_database;"
        "from pipeline.feedback.events import EventLog; print(EventLog(open_database(sys.argv[1])).head())"
    )
    command = [sys.executable, "-W", "error", "-c", script, sqlite_url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(3)]
    with ThreadPoolExecutor(4) as pool:
        for engine in pool.map(open_database, [sqlite_url] * 4):
            engine.dispose()
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [b"0"] * 3


def test_a_transaction_that_reads_first_may_still_write(engine: Engine) -> None:
    """A deferred SQLite transaction would fail here: another writer commits between its read and its write."""

    def bump() -> None:
        with write_transaction(engine) as connection:
            value = connection.execute(text("SELECT value FROM sequence")).scalar_one()
            connection.execute(text("UPDATE sequence SET value = :value"), {"value": value + 1})

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(bump) for _ in range(80)]:
            done.result()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT value FROM sequence")).scalar_one() == 80
