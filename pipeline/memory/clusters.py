"""Fact clusters: lessons that ask the same in other words stand together, so that a split never parts them.

What a router or a threshold is fitted on, and what it is reported on, have no cluster in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.data.lines import LessonLine
from pipeline.model.encoder import Encoder

# The encoder's cosine from which two questions count as one fact. Neighbours often lie above it as well: they are then
# kept together, too, which costs a split nothing.
NEAR = 0.9
_ROWS = 2_048


def fact_clusters(lines: Sequence[LessonLine], encoder: Encoder, near: float = NEAR) -> list[int]:
    """The number of each line's cluster: lines are linked where a phrasing of each lie near one another."""
    texts = [(number, text) for number, line in enumerate(lines) for text in (line.question, *line.paraphrases)]
    if not texts:
        return []
    owners = np.array([number for number, _ in texts])
    vectors = encoder.encode([text for _, text in texts])
    links: list[NDArray[np.int64]] = []
    for start in range(0, len(vectors), _ROWS):
        left, right = np.nonzero(vectors[start : start + _ROWS] @ vectors.T >= near)
        links.append(np.unique(np.stack([owners[left + start], owners[right]]), axis=1))
    pairs = np.concatenate(links, axis=1)
    graph = coo_matrix((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), shape=(len(lines), len(lines)))
    return [int(label) for label in connected_components(graph, directed=False)[1]]


def measured_on(clusters: Sequence[int], one_in: int = 10) -> list[bool]:
    """Of lines with these clusters, which are measured on: all of one cluster in ``one_in``, by first appearance."""
    order = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    return [order[cluster] % one_in == 0 for cluster in clusters]


def split(lines: Sequence[LessonLine], encoder: Encoder, one_in: int = 10) -> tuple[list[LessonLine], list[LessonLine]]:
    """(learned from, measured on): whole clusters, one in ``one_in`` of them measured on."""
    held = measured_on(fact_clusters(lines, encoder), one_in)
    known = [line for line, out in zip(lines, held, strict=True) if not out]
    return known, [line for line, out in zip(lines, held, strict=True) if out]


def apart(lines: Sequence[LessonLine], held_out: Sequence[LessonLine], encoder: Encoder) -> list[LessonLine]:
    """The lines that share no cluster with what is measured on."""
    clusters = fact_clusters([*lines, *held_out], encoder)
    measured = set(clusters[len(lines) :])
    return [line for line, cluster in zip(lines, clusters, strict=False) if cluster not in measured]
