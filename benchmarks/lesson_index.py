"""How the lesson memory behaves as it grows to a million lessons: recall, time, memory, beside exact search.

    python benchmarks/lesson_index.py            # 1,000 to 1,000,000; JSON and plot under benchmarks/results
    python benchmarks/lesson_index.py --sizes 1000,30000 --distinct 5000

Vectors: questions of the router's generator (1,500 cities, 250 countries, ... in many wordings, openers and typos) as
the default encoder encodes them; ``--distinct`` of them are encoded, once (kept under ``--cache``). The rest are
perturbed copies, base + l (other - third) with l uniform in [.1, .4] and all three drawn from the encoded ones, scaled
to length 1: differences of real questions, so that the copies spread as questions do and not as noise does. The queries
are encoded questions that are not in the index. The peer is exact search: one matrix product over all vectors in
float32, in the same run.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.progress import track

from benchmarks.record import save
from pipeline.feedback.records import Event
from pipeline.memory.belief import slot_id
from pipeline.memory.index import Audience, PartitionedIndex, Vectors
from pipeline.memory.router import LogOdds
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Viewer

OUT = Path(__file__).parent / "results" / "lesson_index.json"
CACHE = Path(tempfile.gettempdir()) / "agm-lesson-index"
ALL: Audience = ("default", "", "")
COUNT = 32
QUERIES = 400
PAGE = 10_000  # events at a time, as a replica that catches up takes them


def encoded(distinct: int, cache: Path, seed: int) -> Vectors:
    """Unit vectors of ``distinct`` + QUERIES generated questions, no two alike."""
    from pipeline.memory.router_data import Generator, natural_lines
    from pipeline.model.encoder import load_encoder

    file = cache / f"questions-{distinct}-{seed}.npy"
    if not file.exists():
        generator, texts = Generator(natural_lines(), seed), dict[str, None]()
        while len(texts) < distinct + QUERIES:
            texts.update(dict.fromkeys(generator.wordings(generator.fact(), 1)))
        asked, encoder = list(texts)[: distinct + QUERIES], load_encoder(device="auto")
        parts = track(range(0, len(asked), 2_048), "encoding")
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, np.concatenate([encoder.encode(asked[start : start + 2_048]) for start in parts]))
    return np.load(file)


def spread(base: Vectors, size: int, seed: int) -> Vectors:
    """The first ``size`` of the base and its perturbed copies."""
    random = np.random.default_rng(seed)
    vectors = np.empty((size, base.shape[1]), dtype=np.float32)
    vectors[: len(base)] = base[:size]
    for start in range(len(base), size, 50_000):
        count = min(50_000, size - start)
        one, other, third = base[random.integers(0, len(base), (3, count))]
        moved = one + random.uniform(0.1, 0.4, (count, 1)).astype(np.float32) * (other - third)
        vectors[start : start + count] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return vectors


def percentiles(call: Callable[[Vectors], Any], queries: Vectors) -> tuple[dict[str, float], list[Any]]:
    """Milliseconds of one query at a time, and what came back."""
    call(queries[:1])
    times, found = [], []
    for query in queries:
        began = time.perf_counter()
        found.append(call(query[None]))
        times.append((time.perf_counter() - began) * 1000)
    return {f"p{q}_ms": round(float(np.percentile(times, q)), 3) for q in (50, 95)}, found


def true_neighbours(vectors: Vectors, queries: Vectors) -> list[set[int]]:
    """The COUNT nearest rows of each query, by float32 products over blocks of queries."""
    return [
        set(rows.tolist())
        for block in np.array_split(queries, 20)
        for rows in np.argpartition(-(block @ vectors.T), COUNT, axis=1)[:, :COUNT]
    ]


def measure_index(vectors: Vectors, queries: Vectors) -> dict[str, Any]:
    """One size: the product's own index, filled page by page, beside exact search."""
    index = PartitionedIndex(vectors.shape[1])
    waits: list[float] = []
    done = threading.Event()

    def read() -> None:
        while not done.wait(0.02):
            began = time.perf_counter()
            index.search(ALL, queries[:1], COUNT)
            waits.append((time.perf_counter() - began) * 1000)

    reader = threading.Thread(target=read)
    reader.start()
    began = time.perf_counter()
    for start in range(0, len(vectors), PAGE):
        rows = np.arange(start, min(start + PAGE, len(vectors)), dtype=np.int64)
        index.add(ALL, rows, vectors[rows])
    index.wait()
    built = time.perf_counter() - began
    done.set()
    reader.join()
    took, found = percentiles(lambda query: index.search(ALL, query, COUNT)[0], queries)
    exact, _ = percentiles(lambda query: np.argpartition(-(vectors @ query[0]), COUNT)[:COUNT], queries[:100])
    true = true_neighbours(vectors, queries)
    hits = sum(len(set(rows.tolist()) & wanted) for (rows, _), wanted in zip(found, true, strict=True))
    return {
        "size": len(vectors),
        "kind": type(index.partitions[ALL]).__name__,
        "recall_at_32": round(hits / (COUNT * len(queries)), 4),
        "queries": len(queries),
        "index": took,
        "exact": exact,
        "built_s": round(built, 1),
        "reader_beside_the_build": {"n": len(waits), "p50_ms": _at(waits, 50), "max_ms": _at(waits, 100)},
    }


def _at(values: Sequence[float], percentile: float) -> float | None:
    return round(float(np.percentile(values, percentile)), 2) if values else None


class Given:
    """Vectors that were made beforehand, by the number at the end of a text, so that a million need no encoding."""

    name = "given"

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self.dimension = vectors.shape[1]

    def encode(self, inputs: Sequence[str]) -> Vectors:
        return self._vectors[[int(text.rsplit(" ", 1)[1]) for text in inputs]]


class NoRouter:
    """The second stage has a benchmark of its own."""

    def score(self, pairs: Sequence[Any]) -> LogOdds:
        return np.zeros(len(pairs))


def taught(count: int) -> Iterator[list[Event]]:
    for start in range(0, count, PAGE):
        yield [_taught(number) for number in range(start, min(count, start + PAGE))]


def _taught(number: int) -> Event:
    question = f"What is the registered office of the company with the number {number}"
    body = {
        "op": "correct",
        "lesson_id": slot_id("default", "global", "", question),
        "question": question,
        "answer": f"{number % 997} High Street, Town {number % 3001}",
    }
    return Event("lesson", body, "teacher", "teach", seq=number + 1)


def rss() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def measure_memory(vectors: Vectors, folder: Path) -> dict[str, Any]:
    """A whole memory of one lesson per vector: filled, saved, and loaded in a process of its own."""
    memory = LessonMemory(Given(vectors), NoRouter())
    began = time.perf_counter()
    for page in track(taught(len(vectors)), "teaching", total=-(-len(vectors) // PAGE)):
        memory.apply(page)
    applied = time.perf_counter() - began
    memory._index.wait()
    listing = {}
    for name, asked in (
        ("first page", {}), ("page at 100,000", {"offset": 100_000}), ("search", {"search": "number 123456"}),
    ):  # fmt: skip
        began = time.perf_counter()
        memory.lessons(Viewer(), **asked)
        listing[name] = round((time.perf_counter() - began) * 1000, 1)
    began = time.perf_counter()
    memory.save(folder / "snapshot")
    saved = time.perf_counter() - began
    np.save(folder / "query.npy", vectors[:1])
    command = [sys.executable, __file__, "--load", str(folder)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout.split()
    return {
        "lessons": len(vectors),
        "teach_s": round(applied, 1),
        "save_s": round(saved, 1),
        "snapshot_mb": round(sum(file.stat().st_size for file in (folder / "snapshot").iterdir()) / 1e6),
        "load_s": float(loaded[0]),
        "memory_mb": int(loaded[1]),
        "bytes_per_lesson": round(int(loaded[1]) * 1e6 / len(vectors)),
        "listing_ms": listing,
    }


def load_only(folder: Path) -> None:
    """In a fresh process: seconds to load, and how many MB that took."""
    given, before = Given(np.load(folder / "query.npy")), rss()
    began = time.perf_counter()
    memory = LessonMemory.load(folder / "snapshot", given, NoRouter())
    took = time.perf_counter() - began
    assert len(memory)
    print(round(took, 1), round((rss() - before) / 1e6))


def plot(figures: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    rows = figures["index"]
    sizes = [row["size"] for row in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("index", "exact"):
        left.plot(sizes, [row[name]["p50_ms"] for row in rows], marker="o", label=f"{name}, p50")
    left.axhline(10, linestyle=":", color="grey", label="goal")
    left.set(xscale="log", yscale="log", xlabel="lessons", ylabel="ms per query", title="one query at a time")
    left.legend()
    right.plot(sizes, [row["recall_at_32"] for row in rows], marker="o")
    right.axhline(0.99, linestyle=":", color="grey")
    right.set(xscale="log", xlabel="lessons", ylabel="recall@32 against exact search", ylim=(0.95, 1.002))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,30000,100000,300000,1000000")
    parser.add_argument("--distinct", type=int, default=100_000, help="questions that are encoded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.load:
        load_only(asked.load)
        return
    sizes = [int(size) for size in asked.sizes.split(",")]
    both = encoded(asked.distinct, asked.cache, asked.seed)
    base, queries = both[:-QUERIES], both[-QUERIES:]
    vectors = spread(base, max(sizes), asked.seed)
    order = np.random.default_rng(asked.seed).permutation(len(vectors))
    vectors = vectors[order]  # so that every size has its share of encoded questions
    figures: dict[str, Any] = {"seed": asked.seed, "distinct": asked.distinct, "index": []}
    for size in sizes:
        figures["index"].append(measure_index(vectors[:size], queries))
        print(figures["index"][-1], file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        figures["memory"] = measure_memory(vectors, Path(folder))
    print(figures["memory"], file=sys.stderr)
    save(asked.out, figures)
    plot(figures, asked.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
