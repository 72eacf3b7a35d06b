"""The feedback table: a backlog drained, and small files before and after compaction.

    python -m benchmarks.feedback_table --drain 1000000      # rows per second, peak memory (goal: 5 minutes, 1 GiB)
    python -m benchmarks.feedback_table --commits 10000      # one-row commits: reading them before and after compaction

The log is filled through its own interface, encryption included, in transactions of 5,000 events; filling is not part
of the measured time. Peak memory is the process's own maximum resident set, interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.event_log import event
from benchmarks.record import save
from pipeline.config import FeedbackSettings
from pipeline.feedback.compaction import compact
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.sealer import Sealer, open_table, read_events

PAGE = 5_000


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def fill(log: EventLog, count: int) -> None:
    for start in range(0, count, PAGE):
        log.append([event(number) for number in range(start, min(start + PAGE, count))])
        print(f"\r{min(start + PAGE, count)}/{count} events logged", end="", file=sys.stderr)
    print(file=sys.stderr)


def drained(log: EventLog, table: str, count: int) -> dict[str, float]:
    """Seal ``count`` events and read one column of all of them back."""
    fill(log, count)
    seconds, rows = timed(Sealer(log, table, batch=10_000).drain)
    found = open_table(table)
    assert found is not None
    reading, read = timed(lambda: found.to_pyarrow_dataset().to_table(columns=["seq"]).num_rows)
    assert rows == read == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"rows": count, "drain_s": seconds, "rows_per_s": count / seconds, "read_s": reading, "peak_gib": peak}


def compacted(log: EventLog, table: str, commits: int) -> dict[str, float]:
    """As many one-row files as ``commits``, read and decrypted whole before and after compaction."""
    fill(log, commits)
    writing, _ = timed(Sealer(log, table, batch=1).drain)
    before, events = timed(lambda: read_events(table, log, 0, commits))
    seconds, done = timed(lambda: compact(table, log, FeedbackSettings(keep_versions_hours=0)))
    after, again = timed(lambda: read_events(table, log, 0, commits))
    assert events == again
    assert len(again) == commits
    return {
        "commits": commits,
        "write_s": writing,
        "read_before_s": before,
        "compact_s": seconds,
        "read_after_s": after,
        "files_before": done.files_before,
        "files_after": done.files_after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drain", type=int, help="events in the backlog")
    parser.add_argument("--commits", type=int, help="one-row commits")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/feedback_table.json"))
    asked = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for name, measure, count in (("drain", drained, asked.drain), ("compaction", compacted, asked.commits)):
        if count:
            with tempfile.TemporaryDirectory() as folder:
                log = EventLog(open_database(f"sqlite:///{folder}/events.db"))
                figures[name] = measure(log, f"{folder}/feedback", count)
                log.engine.dispose()
    if not figures:
        parser.error("name --drain, --commits, or both")
    save(asked.out, figures)
    for name, figure in figures.items():
        print(name, ", ".join(f"{key} {value:,.4g}" for key, value in figure.items()))


if __name__ == "__main__":
    main()
