"""The Delta table: what is drained is what was logged, however often a sealer is killed or raced."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipeline.feedback.database import open_database
from pipeline.feedback.events import Backpressure, EventLog
from pipeline.feedback.records import NewEvent
from pipeline.feedback.sealer import (
    SCHEMA,
    SchemaDrift,
    Sealer,
    SealerConflict,
    StorageAway,
    open_table,
    read_events,
    sealed_seq,
)

ROOT = Path(__file__).parents[2]


def fill(log: EventLog, count: int) -> None:
    log.append(
        [
            NewEvent(kind="answer", body={"n": number, "text": "Škoda \x00"}, source="eva", response_id=f"r{number}")
            for number in range(count)
        ]
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "feedback"


def sealed(table: Path) -> list[int]:
    return sorted(DeltaTable(str(table)).to_pyarrow_table(columns=["seq"])["seq"].to_pylist())


def test_what_is_drained_is_what_was_logged(log: EventLog, table: Path) -> None:
    sealer = Sealer(log, table)
    assert (sealer.sealed_seq(), sealer.drain()) == (0, 0)
    fill(log, 5)
    assert (sealer.drain(through=3), sealer.sealed_seq()) == (3, 3)
    assert (sealer.drain(), sealer.drain(), sealer.sealed_seq()) == (2, 0, 5)
    assert read_events(table, log, 0, 99) == log.after(0)
    assert [event.seq for event in read_events(table, log, 2, 4)] == [3, 4]


def test_an_older_version_stays_readable(log: EventLog, table: Path) -> None:
    fill(log, 3)
    Sealer(log, table, batch=2).drain()
    assert [event.seq for event in read_events(table, log, 0, 99, version=1)] == [1, 2]


def test_a_table_that_another_log_filled_is_refused(log: EventLog, table: Path, tmp_path: Path) -> None:
    fill(log, 3)
    Sealer(log, table).drain()
    fresh = EventLog(open_database(f"sqlite:///{tmp_path / 'fresh.db'}"))
    fill(fresh, 2)
    with pytest.raises(SealerConflict, match="sealed through seq 3, this log ends at 2"):
        Sealer(fresh, table).drain()
    fresh.engine.dispose()


def test_no_table_yet_has_no_events(log: EventLog, table: Path) -> None:
    assert read_events(table, log, 0, 10) == []
    assert sealed_seq(table) == 0


def test_the_schema_is_explicit_and_no_text_reaches_the_tables_log(log: EventLog, table: Path) -> None:
    fill(log, 2)
    Sealer(log, table).drain()
    delta = DeltaTable(str(table))
    assert {field.name for field in delta.schema().fields} == set(SCHEMA.names)
    assert delta.metadata().partition_columns == ["ingest_date"]
    lines = [line for path in (table / "_delta_log").glob("*.json") for line in path.read_text().splitlines()]
    entries = [json.loads(line) for line in lines]
    stats = [json.loads(entry["add"]["stats"]) for entry in entries if "add" in entry]
    assert [set(stat["minValues"]) for stat in stats] == [{"seq"}]


def test_the_last_drained_seq_survives_compaction_and_checkpoints(log: EventLog, table: Path) -> None:
    fill(log, 6)
    Sealer(log, table, batch=2).drain()
    delta = DeltaTable(str(table))
    delta.optimize.compact()
    delta.create_checkpoint()
    delta.cleanup_metadata()
    fill(log, 1)
    assert (sealed_seq(table), Sealer(log, table).drain()) == (6, 1)
    assert sealed(table) == list(range(1, 8))


def test_sealers_that_race_write_every_row_once(log: EventLog, table: Path) -> None:
    fill(log, 60)
    start = threading.Barrier(3)

    def drain(_: int) -> int:
        start.wait()
        return Sealer(log, table, batch=10).drain()

    with ThreadPoolExecutor(3) as pool:
        written = list(pool.map(drain, range(3)))
    assert sum(written) == 60
    assert sealed(table) == list(range(1, 61))


def test_a_sealer_whose_view_is_old_is_refused_and_reads_again(log: EventLog, table: Path) -> None:
    """The race in slow motion: the other sealer commits between this one's reading and its writing."""
    fill(log, 4)

    class Slow(EventLog):
        def rows_after(self, seq: int, **bounds: Any) -> list[dict[str, Any]]:
            rows = super().rows_after(seq, **bounds)
            if overtaking:
                overtaking.pop().drain()
            return rows

    overtaking = [Sealer(log, table)]
    assert Sealer(Slow(log.engine), table).drain() == 0
    assert sealed(table) == [1, 2, 3, 4]


def test_a_sealer_killed_at_any_moment_loses_nothing_and_doubles_nothing(
    log: EventLog, table: Path, sqlite_url: str
) -> None:
    moments = random.Random(7)
    command = [sys.executable, str(Path(__file__).with_name("drain_forever.py")), sqlite_url, str(table)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            fill(log, 3)
            time.sleep(0.005)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        for _ in range(4):
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0.0, 0.4))
            process.send_signal(signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL
            process.stdout.close()
            assert (sealed(table) if table.exists() else []) == list(range(1, sealed_seq(table) + 1))
        stop.set()
        writing.result()
    assert 0 < sealed_seq(table) <= log.head()
    Sealer(log, table).drain()
    assert sealed(table) == list(range(1, log.head() + 1))
    assert read_events(table, log, 0, log.head()) == log.after(0, limit=100_000)


def test_a_table_of_the_first_version_gets_the_new_columns(log: EventLog, table: Path) -> None:
    first = pa.schema([field for field in SCHEMA if field.name not in ("lesson_id", "key_name")])
    DeltaTable.create(str(table), schema=first, partition_by=["ingest_date"])
    fill(log, 2)
    assert Sealer(log, table).drain() == 2
    delta = open_table(table)
    assert delta is not None
    assert {field.name for field in delta.schema().fields} == set(SCHEMA.names)
    assert delta.metadata().description == "schema 3"
    assert read_events(table, log, 0, 9) == log.after(0)


def test_a_newer_table_may_have_columns_more(log: EventLog, table: Path) -> None:
    DeltaTable.create(
        str(table), schema=pa.schema([*SCHEMA, pa.field("added_later", pa.string())]), partition_by=["ingest_date"]
    )
    fill(log, 2)
    assert Sealer(log, table).drain() == 2
    assert read_events(table, log, 0, 9) == log.after(0)


@pytest.mark.parametrize("column", [pa.field("body", pa.int64()), None])
def test_columns_of_another_type_or_missing_ones_are_refused(
    log: EventLog, table: Path, column: pa.Field | None
) -> None:
    fields = [field for field in SCHEMA if field.name != "body"] + ([column] if column else [])
    DeltaTable.create(str(table), schema=pa.schema(fields), partition_by=["ingest_date"])
    fill(log, 1)
    with pytest.raises(SchemaDrift, match="body"):
        Sealer(log, table).drain()


def test_words_are_sealed_as_they_are_stored_and_need_the_key(log: EventLog, table: Path) -> None:
    fill(log, 2)
    Sealer(log, table).drain()
    files = b"".join(path.read_bytes() for path in table.rglob("*") if path.is_file())
    assert "Škoda".encode() not in files
    assert pa.compute.all(pa.compute.starts_with(DeltaTable(str(table)).to_pyarrow_table()["body"], "agm1:")).as_py()


def test_a_reader_outlives_a_vacuum_of_its_version(log: EventLog, table: Path) -> None:
    fill(log, 6)
    Sealer(log, table, batch=2).drain()
    delta = DeltaTable(str(table))
    delta.optimize.compact()
    DeltaTable(str(table)).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert read_events(table, log, 0, 4, version=2) == log.after(0, through=4)


def test_a_gap_at_the_end_of_the_log_is_sealed_too(log: EventLog, table: Path) -> None:
    fill(log, 3)
    with log.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM events WHERE seq > 1")
    assert (Sealer(log, table).drain(), sealed_seq(table)) == (1, 3)
    with log.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE sequence SET value = 5 WHERE name = 'events'")
    assert (Sealer(log, table).drain(), sealed_seq(table)) == (0, 5)


def test_storage_that_is_away_stops_the_writers_at_the_limit_and_catches_up(log: EventLog, tmp_path: Path) -> None:
    limited, table = EventLog(log.engine, max_backlog=5), tmp_path / "mount" / "feedback"
    fill(limited, 2)
    Sealer(limited, table).drain()
    (tmp_path / "mount").rename(tmp_path / "gone")
    (tmp_path / "mount").write_text("not a folder")
    fill(limited, 6)
    with pytest.raises(StorageAway, match="keeps what is not sealed"):
        Sealer(limited, table).drain()
    with pytest.raises(Backpressure, match="6 events wait to be sealed, at most 5"):
        fill(limited, 1)
    (tmp_path / "mount").unlink()
    (tmp_path / "gone").rename(tmp_path / "mount")
    assert Sealer(limited, table).drain() == 6
    fill(limited, 1)
    assert limited.head() == 9
