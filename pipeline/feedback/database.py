"""Opening the one database that orders everything: SQLite in the home, or PostgreSQL by URL.

The schema is brought to its newest version on opening, by however many processes open it at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
from alembic.config import Config
from filelock import FileLock
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text

from pipeline.feedback.tables import api_keys, events, promotions, sequence, verdicts

__all__ = [
    "DatabaseError",
    "api_keys",
    "events",
    "open_database",
    "opened",
    "promotions",
    "sequence",
    "verdicts",
    "write_transaction",
]

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 30
_ADVISORY_KEY = 0x61676D  # "agm": any number that only these migrations lock
_upgrading = threading.Lock()  # Alembic's context is a module-wide proxy: one upgrade at a time in a process


class DatabaseError(ValueError):
    """The database URL cannot serve this installation; the message says what to use instead."""


def open_database(url: str, *, nodes: int = 1) -> Engine:
    """An engine on ``url`` with the newest schema, safe to share between threads.

    Raises :class:`DatabaseError` for SQLite with ``nodes`` > 1: its locks do not reach across machines.
    """
    parsed = _checked(url, nodes)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed)
    return _open_postgres(parsed)


@contextmanager
def opened(url: str, *, nodes: int = 1) -> Iterator[Engine]:
    """The same for a while: its connections are closed at the end."""
    engine = open_database(url, nodes=nodes)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that may read and then write: on SQLite it takes the write lock at its beginning.

    A deferred SQLite transaction that reads first fails with "database is locked" when another writer came between.
    """
    with engine.connect() as connection:
        writer = connection.execution_options(agm_write=True)
        with writer.begin():
            yield writer


def _checked(url: str, nodes: int) -> URL:
    parsed = make_url(url.replace("postgres://", "postgresql://", 1))
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise DatabaseError(f"events database {backend!r} is not supported: use sqlite:///PATH or postgresql://…")
    if backend == "sqlite" and nodes > 1:
        raise DatabaseError(
            f"the events database is SQLite and Ray has {nodes} nodes: set AGM_EVENTS_URL to a postgresql:// URL"
        )
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise DatabaseError("the events database must be a file that processes can share: use sqlite:///PATH")
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def _open_sqlite(url: URL) -> Engine:
    path = Path(str(url.database)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=8, max_overflow=56, pool_timeout=BUSY_TIMEOUT_S
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    with _upgrading, FileLock(f"{path}.lock", timeout=2 * BUSY_TIMEOUT_S):
        with engine.connect() as connection:
            # Kept in the file. Outside a transaction, and under the lock: changing the mode ignores busy_timeout.
            connection.connection.driver_connection.execute("PRAGMA journal_mode = WAL")  # type: ignore[union-attr]
        with write_transaction(engine) as connection:
            _upgrade(connection)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours, see _begin_sqlite
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # a deleted row is overwritten, not only unlinked


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("agm_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _open_postgres(url: URL) -> Engine:
    # READ COMMITTED: the statement after a wait for the counter's row lock must see what was committed meanwhile.
    engine = create_engine(url, isolation_level="READ COMMITTED", pool_pre_ping=True, pool_size=8, max_overflow=24)
    with _upgrading, engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_KEY})
        _upgrade(connection)
    return engine


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
