"""Real databases for the data tests: a SQLite file, and a throw-away PostgreSQL where its server is installed."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from sqlalchemy import Engine

from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from serve.deploy import free_port

MissingPart = Callable[[str, str], NoReturn]


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'events.db'}"


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = open_database(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture
def log(engine: Engine) -> EventLog:
    return EventLog(engine)


@pytest.fixture(scope="session")
def postgres_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the master keys of what is written to the server lie: they last as long as it does."""
    return tmp_path_factory.mktemp("postgres-home")


@pytest.fixture
def postgres_url(postgres_server: str, postgres_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's URL, for a test that leaves no keys in the checkout."""
    if "AGM_HOME" not in os.environ:
        monkeypatch.setenv("AGM_HOME", str(postgres_home))
    return postgres_server


@pytest.fixture(scope="session")
def postgres_server(missing_part: MissingPart) -> Iterator[str]:
    """A fresh cluster on a free loopback port, without fsync: durability is PostgreSQL's own business."""
    binaries, user = _postgres_binaries(missing_part), _unprivileged(missing_part)
    # Not pytest's temporary folder: that one is closed to every other user.
    with tempfile.TemporaryDirectory(prefix="agm-postgres-") as folder:
        if user:
            shutil.chown(folder, user)
        data, port = f"{folder}/data", free_port("127.0.0.1", 0)
        _as(user, [str(binaries / "initdb"), "-D", data, "-U", "agm", "--auth=trust", "--no-sync", "-E", "UTF8"])
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        control = [str(binaries / "pg_ctl"), "-D", data, "-w"]
        _as(user, [*control, "-o", options, "-l", f"{folder}/server.log", "start"])
        try:
            yield f"postgresql://agm@127.0.0.1:{port}/postgres"
        finally:
            _as(user, [*control, "-m", "immediate", "stop"])


def _postgres_binaries(missing: MissingPart) -> Path:
    if importlib.util.find_spec("psycopg") is None:
        missing("postgres", "PostgreSQL's driver is not installed: pip install 'psycopg[binary]'")
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), reverse=True)
    if not found:
        missing("postgres", "no PostgreSQL server here (initdb not found)")
    return found[0]


def _unprivileged(missing: MissingPart) -> str | None:
    """PostgreSQL refuses to run as root; whoever else is running needs no other user."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = next((name for name in ("postgres", "nobody") if name in names), None)
    if user is None:
        missing("postgres", "running as root, and there is no user 'postgres' or 'nobody' to run PostgreSQL as")
    return user


def _as(user: str | None, command: list[str]) -> None:
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
    subprocess.run(command, user=user, check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/", env=environment)
