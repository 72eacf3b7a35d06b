"""Keeping the feedback table small and the log bounded: retention, compaction, vacuum. Safe beside readers and writers.

A sealer appends while this runs: its commits and these never lose rows to each other, and whoever loses a race reads
the table again. A reader whose version is vacuumed away reads the newest, which has the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from sqlalchemy import delete, exists, select

from pipeline.config import FeedbackSettings
from pipeline.feedback.database import write_transaction
from pipeline.feedback.events import LOCKED_HEAD, EventLog
from pipeline.feedback.sealer import ATTEMPTS, Sealer, open_table
from pipeline.feedback.tables import citations
from pipeline.feedback.tables import events as table

MERGED_AFTER = 256  # commits of a sealer: each makes a file, and a commit costs more the more files there are
ORPHAN_HOURS = 1  # files of a killed writer, which no commit names: a living one commits within seconds
_PREDICATE = 400  # ranges in one DELETE


@dataclass(frozen=True)
class Compacted:
    """What one run did."""

    expired: int  # answers that nobody said anything about, older than they are kept
    files_before: int
    files_after: int
    vacuumed: int


def compact(table_path: str, log: EventLog, settings: FeedbackSettings, *, now: datetime | None = None) -> Compacted:
    """Seal what is open, drop expired answers, merge small files, and delete versions older than they are kept."""
    Sealer(log, table_path).drain()
    before = _files(table_path)
    expired = _expire(table_path, log, settings, now or datetime.now(UTC))
    changed(table_path, lambda found: found.optimize.compact())
    found = open_table(table_path)
    assert found is not None
    found.create_checkpoint()
    found.cleanup_metadata()
    gone = vacuum(table_path, settings.keep_versions_hours)
    return Compacted(expired, before, _files(table_path), gone)


class TidySealer:
    """A sealer that merges a day's small files after every ``merged_after`` commits, so that a steady trickle of
    feedback costs tomorrow what it costs today. Old files stay until :func:`compact` vacuums them."""

    def __init__(self, log: EventLog, table_path: str, *, merged_after: int = MERGED_AFTER) -> None:
        self._sealer, self._path, self._merged_after = Sealer(log, table_path), table_path, merged_after
        self._merged = 0  # of the sealer's commits

    def drain(self, through: int | None = None) -> int:
        """As :meth:`Sealer.drain`."""
        written = self._sealer.drain(through)
        if self._sealer.commits - self._merged >= self._merged_after:
            today = datetime.now(UTC).date().isoformat()
            changed(self._path, lambda found: found.optimize.compact(partition_filters=[("ingest_date", "=", today)]))
            self._merged = self._sealer.commits
        return written


def changed(table_path: str, change: Callable[[DeltaTable], Any]) -> None:
    """Apply ``change`` to the newest table, again where another writer's commit came between."""
    for attempt in range(ATTEMPTS):
        found = open_table(table_path)
        assert found is not None
        try:
            change(found)
        except CommitFailedError:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            return


def delete_sealed(table_path: str, seqs: Iterable[int]) -> None:
    """Rewrite the files that hold these rows without them; the old files stay until they are vacuumed."""
    spans = ranges(seqs)
    for start in range(0, len(spans), _PREDICATE):
        predicate = " OR ".join(f"(seq >= {low} AND seq <= {high})" for low, high in spans[start : start + _PREDICATE])
        changed(table_path, lambda found, predicate=predicate: found.delete(predicate))  # type: ignore[misc]


def vacuum(table_path: str, hours: int) -> int:
    """Delete files that no version of the last ``hours`` needs, and those that no commit has ever named."""
    found = open_table(table_path)
    assert found is not None
    removed = found.vacuum(retention_hours=hours, enforce_retention_duration=False, dry_run=False)
    orphans = found.vacuum(
        retention_hours=max(hours, ORPHAN_HOURS), enforce_retention_duration=False, dry_run=False, full=True
    )
    return len(removed) + len(orphans)


def ranges(seqs: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, first and last."""
    spans: list[tuple[int, int]] = []
    for seq in sorted(seqs):
        if spans and seq == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], seq)
        else:
            spans.append((seq, seq))
    return spans


def _expire(table_path: str, log: EventLog, settings: FeedbackSettings, now: datetime) -> int:
    """The table first, the log last: whoever is interrupted finds the rows in the log, and begins again.

    An answer that somebody speaks about meanwhile stays in the log, where feedback and lineage look for it.
    """
    cutoff = (now - timedelta(days=settings.keep_answers_days)).isoformat(timespec="milliseconds")
    said = table.alias("said")
    mentioned = exists().where(said.c.response_id == table.c.response_id, said.c.kind != "answer")
    expired = (table.c.kind == "answer", table.c.time < cutoff, ~mentioned)
    with log.engine.connect() as connection:
        seqs = list(connection.scalars(select(table.c.seq).where(*expired)))
    if not seqs:
        return 0
    delete_sealed(table_path, seqs)
    gone = 0
    with write_transaction(log.engine) as connection:
        connection.execute(LOCKED_HEAD)  # whoever speaks comes before or after
        for low, high in ranges(seqs):
            gone += connection.execute(delete(table).where(table.c.seq.between(low, high), *expired)).rowcount
            left = exists().where(table.c.seq == citations.c.seq)
            connection.execute(delete(citations).where(citations.c.seq.between(low, high), ~left))
    return gone


def _files(table_path: str) -> int:
    found = open_table(table_path)
    return 0 if found is None else len(found.file_uris())
