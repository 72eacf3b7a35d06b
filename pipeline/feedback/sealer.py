"""The sealer drains the event log into a Delta Lake table: Parquet files with an ACID log, local or S3-compatible.

The table's own log carries the last drained ``seq`` as an application transaction, in the same commit as the rows.
A crash therefore leaves both or neither, and a new sealer goes on from what the table says. Rows are copied as they
are stored, so the words in them stay encrypted and the sealer needs no key.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import (
    CommitProperties,
    DeltaTable,
    Field,
    PostCommitHookProperties,
    Schema,
    Transaction,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipeline.feedback.events import EventLog
from pipeline.feedback.records import Event

APPLICATION = "agm-sealer"
SEEN_FOR_S = 3600.0  # then it is read anew: of a table that was seen long ago, Delta may have cleaned the log since
READ_ANEW_AFTER = 64  # commits: each leaves a piece in what delta-rs holds in memory, and the next takes .1 ms longer
ATTEMPTS = 20  # lost races in a row before giving up: each one lost means that another sealer went forward

_REQUIRED = ("event_id", "kind", "time", "tenant", "scope", "scope_id", "source", "role")
# Version 2 added lesson_id, version 3 key_name. A new column is nullable and comes last; nothing is ever renamed or
# retyped.
TABLE_VERSION = 3
SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in _REQUIRED),
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("feedback_id", pa.string()),
        pa.field("response_id", pa.string()),
        pa.field("body", pa.string(), nullable=False),  # encrypted JSON
        pa.field("ingest_date", pa.date32(), nullable=False),  # the sealer's day, not the event's
        pa.field("lesson_id", pa.string()),
        pa.field("key_name", pa.string()),
    ]
)
_EVENT_FIELDS = [name for name in SCHEMA.names if name not in ("ingest_date", "lesson_id")]


class SealerConflict(RuntimeError):  # noqa: N818 - reads as what happened
    """The table is not this log's to write: another log filled it, or other sealers won every race."""


class SchemaDrift(RuntimeError):  # noqa: N818
    """The table's columns are not the ones that this version writes, and adding columns does not mend it."""


class StorageAway(RuntimeError):  # noqa: N818
    """The table's storage does not answer; the event log holds what is not sealed yet."""


class Sealer:
    """Drains one log into one table; any number of sealers may work on the same pair."""

    def __init__(self, log: EventLog, table_path: str | Path, *, batch: int = 10_000) -> None:
        self._log = log
        self._path = str(table_path)
        self._batch = batch
        self._table: DeltaTable | None = None  # as this sealer saw it last,
        self._seen = 0.0  # and when
        self.commits = 0  # that this sealer has made

    def drain(self, through: int | None = None) -> int:
        """Seal everything committed so far, or up to ``through``; returns the rows that this call wrote.

        Memory is bounded by one batch. Raises :class:`StorageAway` where the storage does not answer; what had been
        committed stays, and the next drain goes on behind it.
        """
        try:
            return self._drain(through)
        except OSError as error:
            raise StorageAway(
                f"{self._path} does not answer, the event log keeps what is not sealed: {error}"
            ) from error

    def _drain(self, through: int | None) -> int:
        table = self._newest()
        head = self._log.head()  # read after the table, which can therefore not be ahead of its own log
        if _sealed(table) > head:
            raise SealerConflict(f"{self._path} is sealed through seq {_sealed(table)}, this log ends at {head}")
        goal = head if through is None else min(through, head)
        written = lost = 0
        while (sealed := _sealed(table)) < goal:
            self._log.note_sealed(sealed)
            rows = self._log.rows_after(sealed, limit=self._batch, through=goal)
            last = rows[-1]["seq"] if len(rows) == self._batch else goal
            if _commit(table, rows, last):
                written, lost, self.commits = written + len(rows), 0, self.commits + 1
                if self.commits % READ_ANEW_AFTER == 0:
                    table = DeltaTable(self._path)
            elif (lost := lost + 1) == ATTEMPTS:
                raise SealerConflict(f"{self._path}: {ATTEMPTS} commits in a row lost to other writers")
            else:
                table.update_incremental()
        self._log.note_sealed(_sealed(table))
        self._table, self._seen = table, time.monotonic()
        return written

    def _newest(self) -> DeltaTable:
        """What it saw last and what came since: to read thousands of files' names anew takes longer than a commit."""
        table, self._table = self._table, None  # an error leaves none: the next drain reads it anew
        if table is None or time.monotonic() - self._seen > SEEN_FOR_S:
            return _open_or_create(self._path)
        table.update_incremental()
        return table

    def sealed_seq(self) -> int:
        """The last ``seq`` in the table; 0 before the first drain."""
        return sealed_seq(self._path)


def sealed_seq(table_path: str | Path) -> int:
    """The last ``seq`` in the table; 0 where there is none."""
    table = open_table(table_path)
    return 0 if table is None else _sealed(table)


def table_version(table_path: str | Path) -> int:
    """The newest version of the table."""
    return DeltaTable(str(table_path)).version()


def read_events(
    table_path: str | Path, log: EventLog, from_seq: int, to_seq: int, *, version: int | None = None
) -> list[Event]:
    """The sealed events with ``from_seq`` < seq <= ``to_seq``, in order; ``log`` has the keys to their words.

    Of an older table ``version`` if given, as long as it is there: compaction and vacuum take old versions away, and
    the newest has the same rows below its sealed ``seq`` (but for those that were erased, which nobody may read).
    """
    rows = _read(table_path, from_seq, to_seq, version)
    return log.opened(rows.sort_by("seq").to_pylist())


def _read(table_path: str | Path, from_seq: int, to_seq: int, version: int | None) -> pa.Table:
    wanted = (ds.field("seq") > from_seq) & (ds.field("seq") <= to_seq)
    for attempt in range(ATTEMPTS):
        table = open_table(table_path)
        if table is None:
            return SCHEMA.empty_table().select(_EVENT_FIELDS)
        try:
            if version is not None and version < table.version():
                table.load_as_version(version)
            return table.to_pyarrow_dataset().to_table(columns=_EVENT_FIELDS, filter=wanted)
        except (FileNotFoundError, DeltaError):  # vacuumed beneath this reader: look again, at the newest version
            version = None
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def open_table(path: str | Path) -> DeltaTable | None:
    """The table, or ``None`` where there is none yet."""
    try:
        return DeltaTable(str(path))
    except TableNotFoundError:
        return None


def _commit(table: DeltaTable, rows: Sequence[dict[str, Any]], through: int) -> bool:
    """Append to the table as it was read; ``False`` when another sealer committed since.

    ``table`` must be the snapshot that the last sealed ``seq`` was read from: Delta refuses the commit if the same
    application committed after that snapshot. Given a path, it would read a newer one and write the rows twice.
    ``through`` may lie behind the last row, where erased events have left a gap. Columns of a newer version are merged
    in only where there are any: among thousands of files, merging doubles the time of a commit.
    """
    newer = {field.name for field in table.schema().fields} - set(SCHEMA.names)
    done = CommitProperties(app_transactions=[Transaction(APPLICATION, through)])
    try:
        write_deltalake(
            table,
            _arrow(rows),
            mode="append",
            schema_mode="merge" if newer else None,
            commit_properties=done,
            post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),  # compaction's work
        )
    except CommitFailedError:
        return False
    return True


def _arrow(rows: Sequence[dict[str, Any]], today: date | None = None) -> pa.Table:
    day = today or datetime.now(UTC).date()
    return pa.Table.from_pylist([{**row, "ingest_date": day} for row in rows], schema=SCHEMA)


def _sealed(table: DeltaTable) -> int:
    return table.transaction_version(APPLICATION) or 0


def _open_or_create(path: str) -> DeltaTable:
    table = open_table(path)
    if table is not None:
        return _evolved(table, path)
    if "://" not in path:
        Path(path).mkdir(parents=True, exist_ok=True)
    try:
        return DeltaTable.create(
            path,
            schema=SCHEMA,
            mode="error",
            name="agm feedback events",
            description=_description(),
            partition_by=["ingest_date"],
            # Statistics on text columns would copy user text into the table's log.
            configuration={"delta.dataSkippingStatsColumns": "seq"},
        )
    except DeltaError:  # another sealer created it first
        return DeltaTable(path)


def _description() -> str:
    return f"schema {TABLE_VERSION}"


def _evolved(table: DeltaTable, path: str) -> DeltaTable:
    """The table with this version's columns: missing ones are added, a type that differs is refused.

    A table of a newer version has columns more; they are left empty by this version's rows.
    """
    there = {field.name: field for field in table.schema().fields}
    ours: list[Field] = Schema.from_arrow(SCHEMA).fields
    drifted = [f for f in ours if f.name in there and there[f.name].type != f.type]
    if drifted:
        name, found, wanted = drifted[0].name, there[drifted[0].name].type, drifted[0].type
        raise SchemaDrift(f"{path}: column {name!r} has type {found}, this version writes {wanted}: use another table")
    missing = [field for field in ours if field.name not in there]
    if any(not field.nullable for field in missing):
        raise SchemaDrift(f"{path}: has no column {missing[0].name!r}; it is not a table of feedback events")
    if missing:
        table.alter.add_columns(missing)
        table.alter.set_table_description(_description())
        table = DeltaTable(path)
    return table
