"""Durable events per second from many writers at the event log's own interface, beside one commit per event.

    python benchmarks/event_log.py                                    # SQLite in a temporary folder
    python benchmarks/event_log.py --url postgresql://…               # a server of yours; its events stay there

Each writer is a thread that appends one event, waits until it is durable, and appends the next. The peer is the same
log, encryption and redaction included, with a lock around ``append``, so that no two events share a transaction.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.record import save
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.records import Event, NewEvent

QUESTION = "What is the currency that people pay with in Croatia since the year 2023?"


def event(number: int) -> NewEvent:
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "question": QUESTION,
        "answer": "the euro, which replaced the kuna",
        "strategy": "copy",
        "lessons": [{"lesson_id": f"les_{number % 97}", "weight": 0.93}],
        "model_version": 3,
        "milliseconds": 12.0,
    }
    return NewEvent(kind="answer", body=body, source=f"user{number % 50}")


def measure(append: Callable[[NewEvent], list[Event]], writers: int, seconds: float) -> dict[str, float]:
    """Events per second, and the latency of one append in milliseconds (p50, p99)."""
    end = time.perf_counter() + seconds
    barrier = threading.Barrier(writers)

    def write(writer: int) -> list[float]:
        took, number = [], writer * 1_000_000
        barrier.wait()
        while (began := time.perf_counter()) < end:
            append(event(number := number + 1))
            took.append(time.perf_counter() - began)
        return took

    with ThreadPoolExecutor(writers) as pool:
        began = time.perf_counter()
        times = sorted(t * 1000 for part in pool.map(write, range(writers)) for t in part)
        took = time.perf_counter() - began
    return {
        "events_per_s": len(times) / took,
        "p50_ms": times[len(times) // 2],
        "p99_ms": times[int(len(times) * 0.99)],
        "n": len(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="the median by rate is reported")
    parser.add_argument("--url", help="default: SQLite in a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/event_log.json"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(open_database(asked.url or f"sqlite:///{folder}/events.db"))
        alone = threading.Lock()

        def one_commit_each(new: NewEvent) -> list[Event]:
            with alone:
                return log.append([new])

        peers = {"group_commit": lambda new: log.append([new]), "one_commit_per_event": one_commit_each}
        measured = {
            name: [measure(append, asked.writers, asked.seconds) for _ in range(asked.repeats)]
            for name, append in peers.items()
        }
        log.engine.dispose()
    medians = {
        name: next(
            run for run in runs if run["events_per_s"] == statistics.median_low([r["events_per_s"] for r in runs])
        )
        for name, runs in measured.items()
    }
    save(asked.out, {"writers": asked.writers, "seconds": asked.seconds, "median": medians, "runs": measured})
    for name, run in medians.items():
        print(f"{name:22s} {run['events_per_s']:7.0f} events/s, p50 {run['p50_ms']:.1f} ms, p99 {run['p99_ms']:.1f} ms")


if __name__ == "__main__":
    main()
