"""Retention by likelihood, with a scorer that reads its scores from a table."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.lines import RetentionProbe
from pipeline.evaluate.metrics import Interval
from pipeline.evaluate.retention import kept, right


class TableScorer:
    """Mean log-likelihoods by answer; the same for every question."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores
        self.batches: list[int] = []

    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        self.batches.append(len(questions))
        return [[self.scores[option] for option in row] for row in options]


def probe(answer: str, *distractors: str) -> RetentionProbe:
    return RetentionProbe(question="?", answer=answer, distractors=distractors)


def test_right_is_the_highest_likelihood() -> None:
    scorer = TableScorer({"Paris": -0.2, "Rome": -0.9, "Bonn": -0.1})
    probes = [probe("Paris", "Rome"), probe("Paris", "Rome", "Bonn"), probe("Rome", "Paris")]
    assert right(scorer, probes) == [True, False, False]


def test_a_tie_is_not_right() -> None:
    assert right(TableScorer({"a": -1.0, "b": -1.0}), [probe("a", "b")]) == [False]


def test_probes_are_scored_in_batches_with_progress() -> None:
    scorer = TableScorer({"a": 0.0, "b": -1.0})
    seen: list[tuple[int, int]] = []
    assert all(right(scorer, [probe("a", "b")] * 5, batch=2, progress=lambda total, done: seen.append((total, done))))
    assert scorer.batches == [2, 2, 1]
    assert seen == [(5, 2), (5, 4), (5, 5)]


@given(st.permutations(["b", "c", "d"]))
def test_the_order_of_distractors_does_not_matter(distractors: list[str]) -> None:
    assert right(TableScorer({"a": -1.0, "b": -2.0, "c": -3.0, "d": -1.5}), [probe("a", *distractors)]) == [True]


def test_kept_counts_only_what_was_right_before() -> None:
    """4 right before, 3 of them after; the one gained does not count."""
    found = kept([True, True, True, True, False], [True, True, True, False, True])
    assert (found.value, found.n) == (0.75, 4)


def test_kept_of_nothing_measures_nothing() -> None:
    assert kept([False, False], [True, False]) == Interval(0.0, 0.0, 1.0, 0)


def test_kept_needs_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        kept([True, True], [True])
