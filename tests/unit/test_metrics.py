"""Shares and intervals on hand-worked numbers, and the properties that the gate relies on."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.metrics import (
    Interval,
    calibration_error,
    mcnemar,
    paired_difference,
    quantile,
    share,
    tango_statistic,
    wilson,
    wilson_of_means,
)

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)
Z = 1.959963984540054


def difference(outcomes: list[tuple[bool, bool]], confidence: float = 0.95) -> Interval:
    return paired_difference([b for b, _ in outcomes], [a for _, a in outcomes], confidence)


def rows(both: int, lost: int, gained: int, neither: int) -> list[tuple[bool, bool]]:
    return [(True, True)] * both + [(True, False)] * lost + [(False, True)] * gained + [(False, False)] * neither


def test_wilson_on_a_hand_worked_half() -> None:
    """5 of 10: centre .5, half = z / (10 + z²) · sqrt(2.5 + z²/4) = 1.96 / 13.8415 · 1.8602 = .26341."""
    found = wilson(5, 10)
    assert found == Interval(0.5, pytest.approx(0.23659, abs=1e-5), pytest.approx(0.76341, abs=1e-5), 10)


def test_wilson_at_the_ends() -> None:
    """n of n: the lower bound is n / (n + z²), the upper is 1."""
    assert wilson(20, 20) == Interval(1.0, pytest.approx(20 / (20 + Z**2)), 1.0, 20)
    assert wilson(0, 20) == Interval(0.0, 0.0, pytest.approx(Z**2 / (20 + Z**2)), 20)
    assert wilson(0, 0) == Interval(0.0, 0.0, 1.0, 0)


def test_wilson_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="5 successes of 4"):
        wilson(5, 4)


@given(st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.51, 0.999))
def test_wilson_holds_its_value(counts: tuple[int, int], confidence: float) -> None:
    found = wilson(*counts, confidence)
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(st.lists(st.booleans(), max_size=80), st.randoms(use_true_random=False))
def test_share_does_not_depend_on_the_order(outcomes: list[bool], shuffler: random.Random) -> None:
    mixed = outcomes.copy()
    shuffler.shuffle(mixed)
    assert share(mixed) == share(outcomes)


def test_tango_with_losses_only_is_wilson_of_the_losses() -> None:
    """With no pair gained, q = 0 for d <= 0 and T(d) is the score statistic of one share: 3 lost of 100."""
    found = difference(rows(90, 3, 0, 7), 0.975)
    assert found.value == pytest.approx(-0.03)
    assert -found.low == pytest.approx(wilson(3, 100).high, abs=1e-9)


def test_tango_on_the_published_example() -> None:
    """36 both, 12 gained, 2 lost: .0611 to .3447 at two-sided 95 %, also by Yang, Sun and Hardin's closed form."""
    found = difference(rows(36, 2, 12, 0), 0.975)
    assert (found.value, found.n) == (pytest.approx(0.2), 50)
    assert (found.low, found.high) == (pytest.approx(0.0611, abs=5e-5), pytest.approx(0.3447, abs=5e-5))


def test_tango_is_antisymmetric_and_symmetric_about_zero_when_balanced() -> None:
    """Swapping the models flips the signs; g = l gives value 0 and bounds of equal size."""
    forward, backward = difference(rows(20, 12, 2, 16)), difference(rows(20, 2, 12, 16))
    assert (forward.low, forward.high) == (pytest.approx(-backward.high), pytest.approx(-backward.low))
    balanced = difference(rows(30, 4, 4, 12))
    assert balanced.value == 0
    assert balanced.low == pytest.approx(-balanced.high)


def test_tango_at_zero_is_mcnemars_statistic() -> None:
    """T(0) = (g - l) / sqrt(g + l): 12 gained, 2 lost -> 10 / sqrt(14)."""
    assert tango_statistic(12, 2, 50, 0.0) == pytest.approx(10 / math.sqrt(14))


def test_tango_uses_the_likelihoods_best_share_of_losses() -> None:
    """q maximises g·log(q + d) + l·log(q) + (n - g - l)·log(1 - 2q - d); found here by a grid instead."""
    gained, lost, n, d = 7, 3, 40, -0.05
    grid = [0.05 + k / 200_000 for k in range(1, 90_000)]
    q = max(grid, key=lambda q: gained * math.log(q + d) + lost * math.log(q) + 30 * math.log(1 - 2 * q - d))
    expected = (gained - lost - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))
    assert tango_statistic(gained, lost, n, d) == pytest.approx(expected, rel=1e-4)


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.floats(0.51, 0.999))
def test_an_identical_model_shows_no_loss_at_any_n(outcomes: list[bool], confidence: float) -> None:
    assert paired_difference(outcomes, outcomes, confidence) == Interval(0.0, 0.0, 0.0, len(outcomes))


@given(pairs)
def test_the_difference_lies_within_its_bounds(outcomes: list[tuple[bool, bool]]) -> None:
    found = difference(outcomes)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(sum(a - b for b, a in outcomes) / len(outcomes))


@given(pairs, st.randoms(use_true_random=False))
def test_the_difference_does_not_depend_on_the_order(
    outcomes: list[tuple[bool, bool]], shuffler: random.Random
) -> None:
    mixed = outcomes.copy()
    shuffler.shuffle(mixed)
    assert difference(mixed) == difference(outcomes)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 100))
def test_one_more_loss_lowers_the_bound(lost: int, gained: int, both: int) -> None:
    fewer, more = rows(both, lost, gained, 0), rows(both - 1, lost + 1, gained, 0)
    assert difference(more).low < difference(fewer).low


@given(pairs)
def test_more_confidence_widens(outcomes: list[tuple[bool, bool]]) -> None:
    narrow, wide = difference(outcomes, 0.9), difference(outcomes, 0.99)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="2 outcomes before, 1 after"):
        paired_difference([True, False], [True])


def test_mcnemar_on_hand_worked_numbers() -> None:
    """1 lost, 5 gained: p = 2 · (C(6,0) + C(6,1)) / 64 = 14 / 64; no discordant pair: 1."""
    assert mcnemar([True] + [False] * 5, [False] + [True] * 5) == pytest.approx(14 / 64)
    assert mcnemar([True, False], [True, False]) == 1.0
    assert mcnemar([True, False], [False, True]) == 1.0


def test_shares_of_items_count_by_item() -> None:
    assert wilson_of_means([1.0, 0.5, 0.0, 1.0]) == wilson(2.5, 4)
    assert wilson_of_means([1.0] * 7) == wilson(7, 7)
    assert wilson_of_means([1 / 3] * 3).value == pytest.approx(1 / 3)


def test_a_quantile_and_the_order_statistics_around_it() -> None:
    """n = 100, q = .5: ranks 50 ± 1.96 · 5, so from the 41st to the 60th value."""
    values = list(range(1, 101))
    assert quantile(values, 0.5) == Interval(50, 41, 60, 100)
    assert quantile(values, 0.95).value == 95
    assert quantile([3.0], 0.95) == Interval(3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_calibration_error_by_hand() -> None:
    """Two bins: .9 and .9 with one right (gap .4, weight 1/2), .1 and .3 with none right (gap .2, weight 1/2)."""
    assert calibration_error([0.9, 0.9, 0.1, 0.3], [True, False, False, False], bins=2) == pytest.approx(0.3)
    assert calibration_error([1.0, 0.0], [True, False]) == 0
    assert calibration_error([], []) == 0
    with pytest.raises(ValueError, match="1 probabilities but 0 outcomes"):
        calibration_error([0.5], [])
