"""A large partition: an inverted file of half-precision vectors, by faiss.

Vectors are grouped around centroids, and a search compares those of the nearest groups. Of faiss's kinds this one
takes vectors back for good, where a graph (faiss's own, hnswlib's, usearch's) can only mark them; it gives the same
groups for the same vectors and seed; and a partition that is rebuilt is searched on meanwhile. faiss is loaded when the
first partition grows large, so a small installation never pays for it. (On macOS its wheel and torch's each bring an
OpenMP runtime, which can clash: install both from conda-forge there before a memory grows large.)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from pipeline.memory.index import Rows, Vectors

# benchmarks/lesson_index.py measures them against exact search. With an eighth of the groups compared, recall@32 was
# .998 at 100,000 questions and .988 at a million, hence a sixth.
LISTS = 8.0  # groups per square root of the vectors
PROBED = 1 / 6  # of the groups are compared, or more of a smaller partition:
COMPARED = 60_000  # as many vectors at least, which take 3 ms
TRAINED_ON = 16  # vectors per group that the centroids are fitted to
ROUNDS = 4  # of k-means
GROWS = 2  # times the size it was trained for, then it is rebuilt
BATCH = 16_384  # vectors that are grouped at once


class ApproximatePartition:
    """The vectors of one audience, searched in the groups nearest to the query."""

    def __init__(self, index: Any, room: int) -> None:
        self.room = room  # how many vectors it is fit for
        self._index = index

    @classmethod
    def trained(cls, sample: Vectors, size: int) -> Self:
        """An empty partition whose centroids are fitted to ``sample``, fit for some times ``size`` vectors."""
        import faiss

        groups = lists(size)
        quantizer = faiss.IndexFlatIP(sample.shape[1])
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, sample.shape[1], groups, half, faiss.METRIC_INNER_PRODUCT, False
        )
        index.cp.niter, index.cp.spherical, index.cp.seed = ROUNDS, True, 0
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, TRAINED_ON
        index.train(sample)
        index.set_direct_map_type(faiss.DirectMap.Hashtable)  # row -> place, to take vectors back and to read them
        return cls(index, GROWS * size)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, rows: Rows, vectors: Vectors) -> None:
        for start in range(0, len(rows), BATCH):
            self._index.add_with_ids(vectors[start : start + BATCH], rows[start : start + BATCH])
        self._index.nprobe = probed(self._index.nlist, len(self))

    def remove(self, rows: Rows) -> None:
        """Rows that are not here are let be."""
        import faiss

        self._index.remove_ids(faiss.IDSelectorArray(len(rows), faiss.swig_ptr(rows)))

    def nearest(self, queries: Vectors, count: int) -> list[Rows]:
        _, found = self._index.search(queries, count)
        return [rows[rows >= 0] for rows in found]

    def rows(self) -> Rows:
        import faiss

        lists = self._index.invlists
        held = [faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n)).copy() for n in range(lists.nlist)]
        return np.concatenate(held)

    def vectors(self, rows: Rows) -> Vectors:
        found: Vectors = self._index.reconstruct_batch(rows)
        return found

    def save(self, path: Path) -> None:
        import faiss

        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path, room: int) -> Self:
        import faiss

        return cls(faiss.read_index(str(path)), room)


def probed(groups: int, size: int) -> int:
    """How many of the groups of ``size`` vectors a search compares."""
    return max(1, round(groups * min(1.0, max(PROBED, COMPARED / max(1, size)))))


def lists(size: int) -> int:
    """The number of groups for ``size`` vectors."""
    return max(1, round(LISTS * size**0.5))


def sampled(rows: Rows) -> Rows:
    """The rows that the centroids are fitted to: enough of them, drawn with a fixed seed."""
    wanted = TRAINED_ON * lists(len(rows))
    if len(rows) <= wanted:
        return rows
    return np.random.default_rng(0).choice(np.sort(rows), wanted, replace=False)
