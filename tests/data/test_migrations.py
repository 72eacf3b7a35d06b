"""A database of every earlier version opens with this one, and what was in it is still there."""

from __future__ import annotations

import json
from pathlib import Path

import alembic.command
import pytest
from alembic.config import Config
from sqlalchemy import Connection, create_engine, make_url, text

from pipeline.feedback import database
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.records import NewEvent

ROWS_OF_VERSION_1 = [
    ("answer", "resp_1", None, {"question": "q?", "answer": "old", "lessons": [{"lesson_id": "les_1", "weight": 0.9}]}),
    ("lesson", None, "les_1", {"op": "correct", "lesson_id": "les_1", "question": "q?", "answer": "new"}),
]


def upgraded_to(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, revision)


def write_version_1(connection: Connection) -> None:
    for seq, (kind, response, lesson, body) in enumerate(ROWS_OF_VERSION_1, 1):
        row = {"seq": seq, "id": f"evt_{seq}", "kind": kind, "response": response, "lesson": lesson}
        connection.execute(
            text(
                "INSERT INTO events (seq, event_id, kind, time, tenant, scope, scope_id, source, role, schema_version,"
                " feedback_id, part, response_id, lesson_id, body) VALUES (:seq, :id, :kind, '2026-01-01', 'default',"
                " 'global', '', 'eva', 'teach', 1, NULL, 0, :response, :lesson, :body)"
            ),
            row | {"body": json.dumps(body)},
        )
    connection.execute(text("UPDATE sequence SET value = 2"))


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_database_of_version_1_keeps_its_rows(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'old.db'}"
        old = create_engine(url)
    else:
        base = make_url(request.getfixturevalue("postgres_url")).set(drivername="postgresql+psycopg")
        server = create_engine(base, isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            connection.execute(text("CREATE DATABASE version_1"))
        server.dispose()
        old = create_engine(base.set(database="version_1"))
        url = old.url.render_as_string(hide_password=False)
    with old.begin() as connection:
        upgraded_to(connection, "0001")
        write_version_1(connection)
    old.dispose()

    log = EventLog(open_database(url))
    assert [event.body for event in log.after(0)] == [body for *_, body in ROWS_OF_VERSION_1]
    assert [event.response_id for event in log.citing("default", "les_1")] == ["resp_1"]
    (new,) = log.append([NewEvent(kind="answer", body={"answer": "now"}, source="eva")])
    assert new.seq == 3
    assert [event.seq for event in log.after(0)] == [1, 2, 3]
    log.engine.dispose()
