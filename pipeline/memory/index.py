"""The first stage: which phrasings lie nearest. Exact search in one matrix, behind a seam for larger indexes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


class Index(Protocol):
    """Unit vectors under row numbers. ``labels`` are three numbers per row that ``search`` filters on."""

    def add(self, vectors: Vectors, labels: NDArray[np.int64]) -> Rows: ...

    def remove(self, rows: Rows) -> None: ...

    def search(self, query: Vectors, tenant: int, owners: tuple[int, ...], count: int) -> tuple[Rows, Vectors]: ...


@dataclass
class ExactIndex:
    """Every row compared. Rows double as they grow; removed rows are used again.

    A label is (tenant, owner): owner 0 stands for everybody in the tenant, tenant -1 for an empty row.
    """

    dimension: int
    used: int = 0

    def __post_init__(self) -> None:
        self.vectors: Vectors = np.zeros((64, self.dimension), dtype=np.float32)
        self.labels: NDArray[np.int64] = np.full((64, 2), -1, dtype=np.int64)
        self._free: list[int] = []

    def add(self, vectors: Vectors, labels: NDArray[np.int64]) -> Rows:
        """Row numbers of the (n, dimension) vectors with their (n, 2) labels."""
        rows = np.array([self._free.pop() if self._free else self._next() for _ in range(len(vectors))], dtype=np.int64)
        if len(rows):
            self._grow(int(rows.max()) + 1)
            self.vectors[rows] = vectors
            self.labels[rows] = labels
        return rows

    def remove(self, rows: Rows) -> None:
        self.labels[rows] = -1
        self.vectors[rows] = 0
        self._free.extend(rows.tolist())

    def search(self, query: Vectors, tenant: int, owners: tuple[int, ...], count: int) -> tuple[Rows, Vectors]:
        """The ``count`` nearest visible rows and their cosines, nearest first; equal cosines by row number."""
        labels = self.labels[: self.used]
        visible = np.flatnonzero((labels[:, 0] == tenant) & np.isin(labels[:, 1], owners))
        cosines = self.vectors[visible] @ query if len(visible) < self.used else self.vectors[: self.used] @ query
        if len(visible) > count:
            nearest = np.argpartition(-cosines, count)[:count]
            visible, cosines = visible[nearest], cosines[nearest]
        order = np.lexsort((visible, -cosines))
        return visible[order], cosines[order]

    def restore(self, vectors: Vectors, labels: NDArray[np.int64]) -> None:
        """The rows of a saved index, holes included."""
        self.used = len(vectors)
        self._grow(self.used)
        self.vectors[: self.used], self.labels[: self.used] = vectors, labels
        self._free = np.flatnonzero(labels[:, 0] < 0).tolist()

    def _next(self) -> int:
        self.used += 1
        return self.used - 1

    def _grow(self, needed: int) -> None:
        size = len(self.vectors)
        if needed <= size:
            return
        while size < needed:
            size *= 2
        vectors = np.zeros((size, self.dimension), dtype=np.float32)
        labels = np.full((size, 2), -1, dtype=np.int64)
        vectors[: len(self.vectors)], labels[: len(self.labels)] = self.vectors, self.labels
        self.vectors, self.labels = vectors, labels
