"""Shares and their intervals: pure functions, each with its formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence bounds and the number of items that it rests on."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Share of successes with Wilson's score interval (Wilson 1927; two-sided).

    centre = (k + z²/2) / (n + z²);  half = z / (n + z²) · sqrt(k (n - k) / n + z²/4)

    ``successes`` may be fractional: a sum of n shares. With n = 0 nothing was measured: value 0, bounds 0 and 1.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0 <= successes <= n")
    if n == 0:
        return Interval(0.0, 0.0, 1.0, 0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    value = successes / n  # the bounds hold the value exactly; rounding must not push them past it
    return Interval(value, min(max(centre - half, 0.0), value), max(min(centre + half, 1.0), value), n)


def share(outcomes: Sequence[bool], confidence: float = 0.95) -> Interval:
    """Share of true outcomes, with :func:`wilson`'s interval."""
    return wilson(sum(outcomes), len(outcomes), confidence)


def wilson_of_means(means: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of n shares, each of one item asked several times, with :func:`wilson`'s interval at n items.

    Conservative: a share between 0 and 1 varies less than an outcome that is either.
    """
    return wilson(min(math.fsum(means), len(means)), len(means), confidence)


def quantile(values: Sequence[float], share_below: float, confidence: float = 0.95) -> Interval:
    """The nearest-rank quantile, with the order statistics that bound it whatever the distribution.

    Ranks n q ± z sqrt(n q (1 - q)), the normal approximation of the binomial number of values below (Conover 1980).
    """
    ordered, n = sorted(values), len(values)
    if n == 0:
        raise ValueError("a quantile of no values: nothing was measured")
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(n * share_below * (1 - share_below))

    def at(rank: float) -> float:
        return ordered[min(max(math.ceil(rank), 1), n) - 1]

    middle = n * share_below
    return Interval(at(middle), at(middle - half), at(middle + half), n)


def discordant(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """(lost, gained): pairs that were right only before, and only after."""
    if len(before) != len(after):
        raise ValueError(f"pairs expected: {len(before)} outcomes before, {len(after)} after")
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    return lost, gained


def paired_difference(before: Sequence[bool], after: Sequence[bool], confidence: float = 0.95) -> Interval:
    """share(after) - share(before) over the same items, with Tango's score interval (Tango 1998, Stat. Med. 17:891).

    With g pairs gained, l lost, n pairs, the bounds are the two roots d of |T(d)| = z in

        T(d) = (g - l - n d) / sqrt(n (2 q + d (1 - d)))

    where q is the likelihood's best share of lost pairs given d: q = (sqrt(B² - 8 n C) - B) / (4 n),
    B = (2 n - g + l) d - g - l, C = -l d (1 - d).

    ``confidence`` is one-sided for each bound, as a test of non-inferiority asks: .95 means z = 1.645.

    **No pair discordant.** Tango's bound would be -z²/(n + z²): -.026 at n = 100, so that a model identical to the
    champion would fail for want of probes. Outputs are deterministic: a model that answers every probe as before has
    shown no loss at all, whatever n is. The interval is then [0, 0], the interval of the probes themselves.
    """
    lost, gained = discordant(before, after)
    n = len(before)
    if lost == gained == 0:
        return Interval(0.0, 0.0, 0.0, n)
    z = NormalDist().inv_cdf(confidence)
    value = (gained - lost) / n
    low = _root(lambda d: tango_statistic(gained, lost, n, d) - z, -1.0, value)
    high = _root(lambda d: tango_statistic(gained, lost, n, d) + z, value, 1.0)
    return Interval(value, low, high, n)


def tango_statistic(gained: int, lost: int, n: int, difference: float) -> float:
    """T(d) of :func:`paired_difference`; falls from +infinity to -infinity as d goes from -1 to 1."""
    b = (2 * n - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    q = max((math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n), -difference, 0.0)
    variance = n * (2 * q + difference * (1 - difference))
    distance = gained - lost - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided exact p-value that lost and gained pairs are equally likely (McNemar 1947, exact binomial form).

    p = min(1, 2 · P(X <= min(l, g))) with X ~ Binomial(l + g, 1/2); 1 when no pair is discordant.
    """
    lost, gained = discordant(before, after)
    total = lost + gained
    tail = sum(math.comb(total, k) for k in range(min(lost, gained) + 1))
    return min(1.0, tail / 2 ** max(total - 1, 0))


def calibration_error(probabilities: Sequence[float], outcomes: Sequence[bool], bins: int = 15) -> float:
    """Expected calibration error over equally wide bins (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    ECE = Σ_b n_b / n · |mean outcome in b - mean probability in b|; 0 where nothing was measured.
    """
    if len(probabilities) != len(outcomes):
        raise ValueError(f"{len(probabilities)} probabilities but {len(outcomes)} outcomes: pass one for each")
    gaps = [0.0] * bins
    for probability, outcome in zip(probabilities, outcomes, strict=True):
        gaps[min(int(probability * bins), bins - 1)] += outcome - probability
    return sum(map(abs, gaps)) / max(len(probabilities), 1)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero between ``low`` and ``high``, by bisection to 1e-12."""
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2
