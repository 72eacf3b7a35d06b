"""The sealer drains the event log into a Delta Lake table: Parquet files with an ACID log.

The table's own log carries the last drained ``seq`` as an application transaction, in the same commit as the rows.
A crash therefore leaves both or neither, and a new sealer goes on from what the table says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipeline.feedback.events import EventLog, body_text
from pipeline.feedback.records import Event

APPLICATION = "agm-sealer"
ATTEMPTS = 20  # lost races in a row before giving up: each one lost means that another sealer went forward

_REQUIRED = ("event_id", "kind", "time", "tenant", "scope", "scope_id", "source", "role")
_EVENT_FIELDS = [
    pa.field("seq", pa.int64(), nullable=False),
    *(pa.field(name, pa.string(), nullable=False) for name in _REQUIRED),
    pa.field("schema_version", pa.int32(), nullable=False),
    pa.field("feedback_id", pa.string()),
    pa.field("response_id", pa.string()),
    pa.field("body", pa.string(), nullable=False),  # JSON
]
# The sealer's day, not the event's: one drained batch is one file in one partition.
SCHEMA = pa.schema([*_EVENT_FIELDS, pa.field("ingest_date", pa.date32(), nullable=False)])


class SealerConflict(RuntimeError):  # noqa: N818 - reads as what happened
    """The table is not this log's to write: another log filled it, or other sealers won every race."""


class Sealer:
    """Drains one log into one table; any number of sealers may work on the same pair."""

    def __init__(self, log: EventLog, table_path: str | Path, *, batch: int = 10_000) -> None:
        self._log = log
        self._path = str(table_path)
        self._batch = batch

    def drain(self, through: int | None = None) -> int:
        """Seal everything committed so far, or up to ``through``; returns the rows that this call wrote."""
        table = _open_or_create(self._path)
        head = self._log.head()  # read after the table, which can therefore not be ahead of its own log
        if _sealed(table) > head:
            raise SealerConflict(f"{self._path} is sealed through seq {_sealed(table)}, this log ends at {head}")
        goal = head if through is None else min(through, head)
        written = lost = 0
        while (sealed := _sealed(table)) < goal:
            events = self._log.after(sealed, limit=self._batch, through=goal)
            if not events:
                break
            if _commit(table, events):
                written, lost = written + len(events), 0
            elif (lost := lost + 1) == ATTEMPTS:
                raise SealerConflict(f"{self._path}: {ATTEMPTS} commits in a row lost to other writers")
            table = DeltaTable(self._path)
        return written

    def sealed_seq(self) -> int:
        """The last ``seq`` in the table; 0 before the first drain."""
        return sealed_seq(self._path)


def sealed_seq(table_path: str | Path) -> int:
    """The last ``seq`` in the table; 0 where there is none."""
    table = _open(str(table_path))
    return 0 if table is None else _sealed(table)


def table_version(table_path: str | Path) -> int:
    """The newest version of the table."""
    return DeltaTable(str(table_path)).version()


def read_events(table_path: str | Path, from_seq: int, to_seq: int, *, version: int | None = None) -> list[Event]:
    """The sealed events with ``from_seq`` < seq <= ``to_seq``, in order; of an older table ``version`` if given."""
    if _open(str(table_path)) is None:
        return []
    wanted = (ds.field("seq") > from_seq) & (ds.field("seq") <= to_seq)
    rows = (
        DeltaTable(str(table_path), version=version)
        .to_pyarrow_dataset()
        .to_table(columns=[field.name for field in _EVENT_FIELDS], filter=wanted)
    )
    return list(_events(rows.sort_by("seq")))


def _events(rows: pa.Table) -> Iterator[Event]:
    for row in rows.to_pylist():
        yield Event(**{**row, "body": json.loads(row["body"])})


def _commit(table: DeltaTable, events: Sequence[Event]) -> bool:
    """Append to the table as it was read; ``False`` when another sealer committed since.

    ``table`` must be the snapshot that the last sealed ``seq`` was read from: Delta refuses the commit if the same
    application committed after that snapshot. Given a path, it would read a newer one and write the rows twice.
    """
    done = CommitProperties(app_transactions=[Transaction(APPLICATION, events[-1].seq)])
    try:
        write_deltalake(table, _rows(events), mode="append", commit_properties=done)
    except CommitFailedError:
        return False
    return True


def _rows(events: Sequence[Event], today: date | None = None) -> pa.Table:
    day = today or datetime.now(UTC).date()
    rows = [{**vars(event), "body": body_text(event.body), "ingest_date": day} for event in events]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _sealed(table: DeltaTable) -> int:
    return table.transaction_version(APPLICATION) or 0


def _open(path: str) -> DeltaTable | None:
    try:
        return DeltaTable(path)
    except TableNotFoundError:
        return None


def _open_or_create(path: str) -> DeltaTable:
    table = _open(path)
    if table is not None:
        return table
    Path(path).mkdir(parents=True, exist_ok=True)
    try:
        return DeltaTable.create(
            path,
            schema=SCHEMA,
            mode="error",
            partition_by=["ingest_date"],
            # Statistics on text columns would copy user text into the table's log.
            configuration={"delta.dataSkippingStatsColumns": "seq"},
        )
    except DeltaError:  # another sealer created it first
        return DeltaTable(path)
