"""How long a replica that starts takes until its lesson memory is as the log says, with and without kept vectors.

    python -m benchmarks.restart --lessons 10000 --out restart.json

The log is SQLite, encrypted as it always is; the lessons are the router's generated questions, each with one phrasing.
Every round replays it into an empty memory: the *first* start, which encodes everything and keeps it; a *later* start,
which finds it kept; and the peer, a start that *encodes* everything and keeps nothing. A start means reading and
decrypting the log, the fold, the vectors, the index and nothing else: loading weights, Ray and Serve come on top.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.progress import track
from sqlalchemy import delete

from benchmarks.record import save
from pipeline.data.lines import LessonLine
from pipeline.evaluate.progress import batches
from pipeline.feedback.database import opened
from pipeline.feedback.events import EventLog
from pipeline.feedback.exchange import import_lines
from pipeline.feedback.keys import Key
from pipeline.feedback.records import Event
from pipeline.feedback.tables import event_vectors
from pipeline.feedback.vectors import apply_kept
from pipeline.memory.router import load_router
from pipeline.memory.router_data import Generator
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Reading, Viewer
from pipeline.model.encoder import load_encoder
from serve.follower import FOLLOWED, PAGE

Apply = Callable[[LessonMemory, Sequence[Event]], int]


def main() -> None:
    given = arguments()
    encoder, router = load_encoder(threads=given.threads, device="cpu"), load_router()
    with tempfile.TemporaryDirectory() as folder, opened(f"sqlite:///{folder}/events.db") as database:
        log = EventLog(database)
        questions = taught(log, given.lessons, given.seed)
        bare = size_mb(Path(folder))

        def start(apply: Apply) -> tuple[float, LessonMemory]:
            memory, began = LessonMemory(encoder, router), time.perf_counter()
            for page in batches(list(log.pages(kinds=FOLLOWED)), PAGE):
                apply(memory, page)
            return time.perf_counter() - began, memory

        def kept(memory: LessonMemory, page: Sequence[Event]) -> int:
            return apply_kept(log, memory, page)

        seconds: dict[str, list[float]] = {"encodes": [], "first": [], "later": []}
        for _ in range(given.rounds):
            found: list[list[Reading]] = []
            with log.engine.begin() as connection:
                connection.execute(delete(event_vectors))
            for name, apply in (("encodes", LessonMemory.apply), ("first", kept), ("later", kept)):
                took, memory = start(apply)
                seconds[name].append(took)
                print(f"{name}: {took:.1f} s", flush=True)
                found.append(memory.read(questions[::97], [Viewer()] * len(questions[::97])))
            tops = [[reading.slots[0].lesson_id for reading in readings] for readings in found]
            assert tops[0] == tops[1] == tops[2]
        figures: dict[str, Any] = {
            "asked": {"lessons": given.lessons, "rounds": given.rounds, "seed": given.seed, "threads": given.threads},
            "seconds": {name: round(statistics.median(times), 2) for name, times in seconds.items()},
            "rounds": {name: [round(value, 2) for value in times] for name, times in seconds.items()},
            "log_mb": {"bare": round(bare, 1), "with_vectors": round(size_mb(Path(folder)), 1)},
        }
    save(given.out, figures)
    plot(figures, given.out.with_suffix(".png"))


def taught(log: EventLog, count: int, seed: int) -> list[str]:
    """Teach ``count`` lessons; gives their questions."""
    generator, told = Generator([], seed), dict[str, str]()
    while len(told) < count:
        wordings = generator.wordings(generator.fact(), 2)
        told.setdefault(wordings[0], wordings[-1])
    lines = [LessonLine(question=question, answer="x", paraphrases=(other,)) for question, other in told.items()]
    import_lines(log, track(lines, "teaching"), Key("benchmark", "admin"))
    return list(told)


def size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("events.db*")) / 1e6


def plot(figures: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(6, 2.2), layout="constrained")
    axes = figure.subplots()
    labels = {"encodes": "nothing is kept", "first": "first start, which keeps", "later": "every later start"}
    values = [figures["seconds"][name] for name in labels]
    bars = axes.barh(list(labels.values()), values, color=["#bbbbbb", "#9db8dd", "#3b6fb6"])
    axes.bar_label(bars, [f"{value:.1f} s" for value in values], padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds until {figures['asked']['lessons']:,} lessons are followed (median)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.savefig(path, dpi=120)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lessons", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
