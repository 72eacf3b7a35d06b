"""Samples whose inclusion probabilities are what they say."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.train.sampling import drawn, inclusion

DRAWS = 4000


def test_probabilities_worked_by_hand() -> None:
    assert inclusion([1, 1, 1, 1], 1) == [0.25] * 4
    assert inclusion([1, 3], 1) == [0.25, 0.75]
    assert inclusion([1, 1, 2], 2) == [0.5, 0.5, 1.0]
    assert inclusion([6, 1, 1, 1], 2) == pytest.approx([1.0, 1 / 3, 1 / 3, 1 / 3])  # c w would be 4 / 3
    assert inclusion([1, 2], 5) == [1.0, 1.0]
    assert inclusion([1, 2], 0) == [0.0, 0.0]
    assert inclusion([], 3) == []


@pytest.mark.parametrize("weights", [[1.0] * 12, [1, 1, 1, 1, 2, 2, 3, 9, 40, 0.1]])
def test_each_thing_is_drawn_as_often_as_its_probability_says(weights: list[float]) -> None:
    named = {f"les_{number}": weight for number, weight in enumerate(weights)}
    samples = [drawn(named, 4, f"7/{seed}") for seed in range(DRAWS)]
    assert {len(sample) for sample in samples} == {4}
    counts = Counter(name for sample in samples for name in sample)
    for name, expected in zip(named, inclusion(weights, 4), strict=True):
        # A binomial count of 4000 draws has a standard deviation below 32; four and a half leave 1 in 10,000 runs.
        assert abs(counts[name] - DRAWS * expected) <= 4.5 * (DRAWS * expected * (1 - expected)) ** 0.5, name


def test_pairs_are_drawn_too() -> None:
    """Neighbours on the comb are not tied together: every pair of twelve comes, about as often as any other."""
    named = {f"les_{number}": 1.0 for number in range(12)}
    pairs = Counter(drawn(named, 2, f"{seed}") for seed in range(DRAWS))
    assert len(pairs) == 66
    assert max(pairs.values()) < 2 * DRAWS / 66


def test_a_draw_is_a_function_of_its_seed_and_keeps_the_order() -> None:
    named = {f"les_{number}": 1.0 + number for number in range(20)}
    assert drawn(named, 7, "3/1") == drawn(named, 7, "3/1") != drawn(named, 7, "3/2")
    assert list(drawn(named, 7, "3/1")) == [name for name in named if name in drawn(named, 7, "3/1")]
    assert drawn(named, 50, "3/1") == tuple(named)
    assert drawn({}, 5, "3/1") == ()
