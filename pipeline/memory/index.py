"""The first stage: which phrasings lie nearest, among those that one audience may see.

Vectors lie in partitions, one per audience; a viewer searches the few partitions that the viewer belongs to, so nobody
else's lessons cost time or are ever compared. A partition is searched exactly while it is small; above that a kept
library searches it approximately (``approximate.py``).
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.memory.approximate import ApproximatePartition, rounded, sampled

log = logging.getLogger("pipeline.memory.index")

# Above, an exact search costs more than an approximate one that compares everything (benchmarks/lesson_index.py).
EXACT_BELOW = 16_384
CHUNK = 1_024  # vectors that move from one partition to another while everybody else waits

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Audience = tuple[str, str, str]  # tenant, scope, owner; scope and owner are empty for everybody in the tenant
Found = tuple[Rows, Vectors]  # rows and their cosines, nearest first

NOTHING: Found = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


class Index(Protocol):
    """Unit vectors under row numbers that the caller gives, each in the partition of one audience."""

    def add(self, audience: Audience, rows: Rows, vectors: Vectors) -> None: ...

    def remove(self, audience: Audience, rows: Rows) -> None: ...

    def search(self, audience: Audience, queries: Vectors, count: int) -> list[Found]:
        """For each of the (n, dimension) queries at most ``count`` rows; fewer only where the partition has fewer."""
        ...


class Partition(Protocol):
    """One audience's vectors."""

    def __len__(self) -> int: ...

    def add(self, rows: Rows, vectors: Vectors) -> None: ...

    def remove(self, rows: Rows) -> None: ...

    def nearest(self, queries: Vectors, count: int) -> list[Rows]:
        """The nearest rows of each query, in any order."""
        ...

    def rows(self) -> Rows: ...

    def vectors(self, rows: Rows) -> Vectors: ...


class ExactPartition:
    """Every row compared. Room doubles as it fills; the last row moves into a removed one's place."""

    def __init__(self, dimension: int) -> None:
        self._size = 0
        self._rows: Rows = np.zeros(1, dtype=np.int64)
        self._matrix: Vectors = np.zeros((1, dimension), dtype=np.float32)

    def __len__(self) -> int:
        return self._size

    def add(self, rows: Rows, vectors: Vectors) -> None:
        end = self._size + len(rows)
        if end > len(self._rows):
            room = max(end, 2 * len(self._rows))
            self._rows = _larger(self._rows, room)
            self._matrix = _larger(self._matrix, room)
        self._rows[self._size : end] = rows
        self._matrix[self._size : end] = rounded(vectors)
        self._size = end

    def remove(self, rows: Rows) -> None:
        gone = self._places(rows)
        kept = self._size - len(gone)
        movers = np.setdiff1d(np.arange(kept, self._size), gone, assume_unique=True)
        holes = gone[gone < kept]
        self._rows[holes], self._matrix[holes] = self._rows[movers], self._matrix[movers]
        self._matrix[kept : self._size] = 0  # what was taken back is not kept
        self._size = kept

    def nearest(self, queries: Vectors, count: int) -> list[Rows]:
        cosines = queries @ self._matrix[: self._size].T  # (queries, rows)
        if self._size <= count:
            return [self.rows()] * len(queries)
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        return list(self._rows[nearest])

    def rows(self) -> Rows:
        return self._rows[: self._size].copy()

    def vectors(self, rows: Rows) -> Vectors:
        return self._matrix[self._places(rows)]

    def _places(self, rows: Rows) -> Rows:
        """Where the rows lie, in their order."""
        held = self._rows[: self._size]
        if len(rows) <= 64:
            return np.array([np.flatnonzero(held == row)[0] for row in rows], dtype=np.int64)
        order = np.argsort(held)
        return order[np.searchsorted(held, rows, sorter=order)]


def _larger(array: NDArray, room: int) -> NDArray:
    grown = np.zeros((room, *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return grown


def ranked(partition: Partition, queries: Vectors, count: int) -> list[Found]:
    """The nearest rows with their cosines, nearest first.

    Cosines are summed row by row, so that their last bit does not depend on where a row lies in its partition.
    """
    if not len(partition):
        return [NOTHING] * len(queries)
    found = []
    for query, rows in zip(queries, partition.nearest(queries, count), strict=True):
        cosines = (partition.vectors(rows) * query).sum(axis=1)
        order = np.lexsort((rows, -cosines))
        found.append((rows[order], cosines[order]))
    return found


@dataclass
class _Build:
    """A larger partition in the making, and the rows that changed meanwhile."""

    touched: set[int] = field(default_factory=set)
    thread: threading.Thread | None = None


class PartitionedIndex:
    """Partitions that begin exact and are rebuilt approximately, in the background, when they have outgrown that.

    Readers go on with the old partition until the new one has caught up; the swap is one reference. One writer at a
    time; searches may run beside it.
    """

    def __init__(self, dimension: int, exact_below: int = EXACT_BELOW) -> None:
        self.dimension = dimension
        self.exact_below = exact_below
        self.partitions: dict[Audience, Partition] = {}
        self._builds: dict[Audience, _Build] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return sum(map(len, self.partitions.values()))

    def add(self, audience: Audience, rows: Rows, vectors: Vectors) -> None:
        with self._lock:
            partition = self.partitions.setdefault(audience, ExactPartition(self.dimension))
            partition.add(rows, vectors)
            self._touch(audience, rows)
            self._start_if_outgrown(audience)

    def remove(self, audience: Audience, rows: Rows) -> None:
        if not len(rows):
            return
        with self._lock:
            self.partitions[audience].remove(rows)
            self._touch(audience, rows)
            if not len(self.partitions[audience]) and audience not in self._builds:
                del self.partitions[audience]

    def search(self, audience: Audience, queries: Vectors, count: int) -> list[Found]:
        with self._lock:
            partition = self.partitions.get(audience)
            return [NOTHING] * len(queries) if partition is None else ranked(partition, queries, count)

    def wait(self) -> None:
        """Return once no partition is being rebuilt."""
        while threads := [build.thread for build in list(self._builds.values()) if build.thread]:
            for thread in threads:
                thread.join()

    def save(self, folder: Path) -> list[dict[str, Any]]:
        """Writes the vectors into ``folder`` and returns what :meth:`load` needs to know about each partition."""
        told: list[dict[str, Any]] = []
        exact: list[Partition] = []
        for number, (audience, partition) in enumerate(self.partitions.items()):
            about: dict[str, Any] = {"audience": audience, "size": len(partition)}
            if isinstance(partition, ApproximatePartition):
                about |= {"file": f"index-{number}.faiss", "room": partition.room}
                partition.save(folder / about["file"])
            else:
                exact.append(partition)
            told.append(about)
        rows = [partition.rows() for partition in exact]
        vectors = [partition.vectors(held).astype(np.float16) for partition, held in zip(exact, rows, strict=True)]
        np.save(folder / "rows.npy", np.concatenate([NOTHING[0], *rows]))
        np.save(folder / "vectors.npy", np.concatenate([np.zeros((0, self.dimension), np.float16), *vectors]))
        return told

    def load(self, folder: Path, told: list[dict[str, Any]]) -> None:
        """The partitions as they were saved, down to the order of their rows."""
        rows, vectors = np.load(folder / "rows.npy"), np.load(folder / "vectors.npy", mmap_mode="r")
        start = 0
        for about in told:
            audience = cast(Audience, tuple(about["audience"]))
            if "file" in about:
                self.partitions[audience] = ApproximatePartition.load(folder / about["file"], about["room"])
                continue
            end = start + about["size"]
            partition = self.partitions[audience] = ExactPartition(self.dimension)
            partition.add(rows[start:end], vectors[start:end].astype(np.float32))
            start = end

    def _room(self, partition: Partition) -> int:
        """How many vectors a partition is fit for."""
        return partition.room if isinstance(partition, ApproximatePartition) else self.exact_below

    def _touch(self, audience: Audience, rows: Rows) -> None:
        if audience in self._builds:
            self._builds[audience].touched.update(rows.tolist())

    def _start_if_outgrown(self, audience: Audience) -> None:
        partition = self.partitions[audience]
        if audience in self._builds or len(partition) <= self._room(partition):
            return
        build = self._builds[audience] = _Build()
        build.thread = threading.Thread(target=self._rebuild, args=(audience, build), name="lesson-index", daemon=True)
        build.thread.start()

    def _rebuild(self, audience: Audience, build: _Build) -> None:
        built = False
        try:
            with self._lock:
                old = self.partitions[audience]
                rows = old.rows()
                sample = old.vectors(sampled(rows))
            new = ApproximatePartition.trained(sample, len(rows))
            self._copy(old, new, rows, build)
            while len(build.touched) > CHUNK:
                self._copy(old, new, self._take(build, old, new), build)
            with self._lock:
                self._copy(old, new, self._take(build, old, new), build)
                self.partitions[audience] = new
            built = True
        except Exception:  # the border of the background: the exact partition goes on, only slower
            log.exception("an approximate index over %s could not be built; it stays exact", audience)
        finally:
            with self._lock:
                del self._builds[audience]
                if built:  # it may have outgrown the new one by what came meanwhile
                    self._start_if_outgrown(audience)

    def _take(self, build: _Build, old: Partition, new: Partition) -> Rows:
        """The rows that changed since they were copied: out of ``new``, and to be copied again where ``old`` has them.

        The caller holds the lock where nothing may change afterwards.
        """
        with self._lock:
            changed, build.touched = np.array(sorted(build.touched), dtype=np.int64), set()
            left = np.intersect1d(changed, old.rows(), assume_unique=True)
        new.remove(changed)
        return left

    def _copy(self, old: Partition, new: Partition, rows: Rows, build: _Build) -> None:
        """``rows`` from ``old`` to ``new`` but for those that change meanwhile, in chunks: others get their turn."""
        for start in range(0, len(rows), CHUNK):
            with self._lock:
                part = rows[start : start + CHUNK].tolist()
                chunk = np.array([row for row in part if row not in build.touched], dtype=np.int64)
                vectors = old.vectors(chunk)
            new.add(chunk, vectors)
