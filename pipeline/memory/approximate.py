"""A large partition: compressed vectors in groups, and the vectors themselves in half precision, by faiss.

Vectors are grouped around centroids, and a search compares the codes of the nearest groups (four bits for two
dimensions, in the processor's registers: faiss's fast scan) and then the vectors of the best codes. Of faiss's kinds
this one takes vectors back for good, where a graph (faiss's own, hnswlib's, usearch's) can only mark them; it gives
the same groups for the same vectors and seed; and a partition that is rebuilt is searched on meanwhile. faiss is
loaded when the first partition grows large, so a small installation never pays for it. (On macOS its wheel and
torch's each bring an OpenMP runtime, which can clash: install both from conda-forge there before a memory grows
large.)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from pipeline.memory.index import Rows, Vectors

# benchmarks/lesson_index.py measures them against exact search.
LISTS = 4.0  # groups per square root of the vectors
PROBED = 1 / 5  # of the groups are compared, or more of a smaller partition:
COMPARED = 130_000  # as many codes at least, which take 2 ms
CANDIDATES, LEAST = 8, 128  # vectors that are compared, for each that is wanted and at least
BITS = 4  # of a code, for SHARED dimensions
SHARED = 2
KEPT_IN = 64  # lists of the vectors themselves: one would double its room at once when it is full
TRAINED_ON = 16  # vectors per group that the centroids are fitted to
ROUNDS = 4  # of k-means
GROWS = 2  # times the size it was trained for, then it is rebuilt
BATCH = 16_384  # vectors that are grouped at once


def rounded(vectors: Vectors) -> Vectors:
    """Half precision is what a partition keeps: half the memory, and the same cosines in every kind of partition.

    On a million encoded questions it changes a cosine by less than 1e-4.
    """
    return vectors.astype(np.float16).astype(np.float32)


class ApproximatePartition:
    """The vectors of one audience, searched in the groups nearest to the query."""

    def __init__(self, codes: Any, kept: Any, room: int) -> None:
        self.room = room  # how many vectors it is fit for
        self._codes = codes
        self._kept = kept

    @classmethod
    def trained(cls, sample: Vectors, size: int) -> Self:
        """An empty partition whose centroids are fitted to ``sample``, fit for some times ``size`` vectors."""
        import faiss

        dimension = sample.shape[1]
        inner, half = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_fp16
        groups, parts = faiss.IndexFlatIP(dimension), -(-dimension // SHARED)
        codes = faiss.IndexIVFPQFastScan(groups, dimension, lists(size), parts, BITS, inner)
        codes.by_residual = False  # of unit vectors the codes are as good, and adding takes less
        kept = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dimension), dimension, KEPT_IN, half, inner, False)
        for index in (codes, kept):
            index.cp.niter, index.cp.spherical, index.cp.seed = ROUNDS, True, 0
            index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, TRAINED_ON
            index.train(sample)
        kept.set_direct_map_type(faiss.DirectMap.Hashtable)  # row -> place, to take vectors back and to read them
        return cls(codes, kept, GROWS * size)

    def __len__(self) -> int:
        return int(self._kept.ntotal)

    def add(self, rows: Rows, vectors: Vectors) -> None:
        half = rounded(vectors)  # faiss rounds ties otherwise than numpy does
        for start in range(0, len(rows), BATCH):
            for index in (self._codes, self._kept):
                index.add_with_ids(half[start : start + BATCH], rows[start : start + BATCH])
        self._codes.nprobe = probed(self._codes.nlist, len(self))

    def remove(self, rows: Rows) -> None:
        """Rows that are not here are let be."""
        import faiss

        for index in (self._codes, self._kept):
            index.remove_ids(faiss.IDSelectorArray(len(rows), faiss.swig_ptr(rows)))

    def nearest(self, queries: Vectors, count: int) -> list[Rows]:
        _, found = self._codes.search(queries, max(LEAST, CANDIDATES * count))
        return [self._best(query, rows[rows >= 0], count) for query, rows in zip(queries, found, strict=True)]

    def _best(self, query: Vectors, rows: Rows, count: int) -> Rows:
        if len(rows) <= count:
            return rows
        return rows[np.argpartition(-(self.vectors(rows) @ query), count)[:count]]

    def rows(self) -> Rows:
        import faiss

        held = self._kept.invlists
        parts = [faiss.rev_swig_ptr(held.get_ids(n), held.list_size(n)).copy() for n in range(held.nlist)]
        return np.concatenate(parts)

    def vectors(self, rows: Rows) -> Vectors:
        found: Vectors = self._kept.reconstruct_batch(rows)
        return found

    def save(self, path: Path) -> None:
        import faiss

        for index, file in ((self._codes, path), (self._kept, _beside(path))):
            faiss.write_index(index, str(file))

    @classmethod
    def load(cls, path: Path, room: int) -> Self:
        import faiss

        return cls(faiss.read_index(str(path)), faiss.read_index(str(_beside(path))), room)


def _beside(path: Path) -> Path:
    return path.with_suffix(".kept.faiss")


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
