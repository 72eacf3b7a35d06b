"""From raw outcomes to figures: orders pooled, systems paired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from pipeline.evaluate.exam import Outcomes
from pipeline.evaluate.load import ALONE
from pipeline.evaluate.metrics import Interval, mcnemar, quantile, wilson_of_means
from pipeline.evaluate.result import Result
from pipeline.evaluate.stream import Played

PAIRED = ("reliability", "generality", "locality", "retention_first", "perturbed_generality", "perturbed_locality",
          "mixed", "copy_wrong")  # fmt: skip
CURVE_POINTS = 60

Curve = list[list[float]]  # [coverage, risk]


def summarise(played: Mapping[str, Sequence[Played]], measures: Mapping[str, Any]) -> Result:
    """``played`` is {system: one entry per order}. Figures of single orders and p-values go to ``measures``."""
    systems = {
        name: {str(length): _cell([order for order in orders if length in order.outcomes], length)
               for length in _lengths(orders)}
        for name, orders in played.items() if orders
    }  # fmt: skip
    if "uncorrected" in systems:
        floor = Interval(**measures["noise_floor"])
        systems["uncorrected"] = {
            length: cell | {"noise_floor": floor} for length, cell in systems["uncorrected"].items()
        }
    found = {
        "time_measured": _time_measured(played),
        "orders": {name: [_shares(order) for order in orders] for name, orders in played.items()},
        "mcnemar": _paired(played),
        "risk_coverage": {name: risk_coverage(orders[0].decisions) for name, orders in played.items() if orders},
    }
    return Result(systems=systems, measures={**measures, **found})


def _lengths(orders: Sequence[Played]) -> list[int]:
    return sorted({length for order in orders for length in order.outcomes})


def _cell(orders: Sequence[Played], length: int) -> dict[str, Interval]:
    cell = {metric: pooled([order.outcomes[length].get(metric, []) for order in orders])
            for metric in dict.fromkeys(metric for order in orders for metric in order.outcomes[length])}  # fmt: skip
    times = [value for order in orders for value in order.milliseconds.get(length, [])]
    if times:
        cell |= {"latency_p50_ms": quantile(times, 0.5), "latency_p95_ms": quantile(times, 0.95)}
    cell |= {"memory_bytes": _range([order.bytes[length] for order in orders])}
    return cell | {"teaching_s": _range([order.teaching_s[length] for order in orders])}


def pooled(orders: Iterable[Sequence[tuple[str, bool]]]) -> Interval:
    """Each item's mean over the orders in which it was asked counts once.

    The same question asked in three orders is not three questions, so that n is the number of items and the interval
    is not narrowed by asking again.
    """
    by_item: dict[str, list[bool]] = {}
    for outcomes in orders:
        for item, right in outcomes:
            by_item.setdefault(item, []).append(right)
    return wilson_of_means([mean(rights) for rights in by_item.values()])


def _range(values: Sequence[float]) -> Interval:
    """Mean, smallest and largest; n is the number of orders."""
    return Interval(mean(values), min(values), max(values), len(values))


def _shares(order: Played) -> dict[str, dict[str, float]]:
    """{length: {metric: share}} of one order."""
    return {
        str(length): {metric: mean(right for _, right in outcomes) for metric, outcomes in found.items() if outcomes}
        for length, found in order.outcomes.items()
    }


# pairs of systems


def _paired(played: Mapping[str, Sequence[Played]]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """{length: {system: {other: {metric: {p, lost, gained, n}}}}}; gained: right where the other was wrong."""
    table: dict[str, Any] = {}
    for name, orders in played.items():
        for other, others in played.items():
            for length in _lengths(orders) if other != name else ():
                pairs = {metric: found for metric in PAIRED if (found := _pair(orders, others, length, metric))}
                if pairs:
                    table.setdefault(str(length), {}).setdefault(name, {})[other] = pairs
    return table


def _pair(orders: Sequence[Played], others: Sequence[Played], length: int, metric: str) -> dict[str, Any] | None:
    """Every item at its first asking, so that pairs are independent."""
    mine, theirs = _first(orders, length, metric), _first(others, length, metric)
    both = [item for item in mine if item in theirs]
    if not both:
        return None
    before, after = [theirs[item] for item in both], [mine[item] for item in both]
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    return {"p": mcnemar(before, after), "lost": lost, "gained": gained, "n": len(both)}


def _first(orders: Sequence[Played], length: int, metric: str) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for order in orders:
        outcomes: Outcomes = order.outcomes.get(length, {})
        for item, right in outcomes.get(metric, []):
            found.setdefault(item, right)
    return found


# selective answering


def risk_coverage(decisions: Sequence[tuple[float, bool, bool]]) -> Curve:
    """[coverage, risk] as a threshold on confidence falls.

    coverage = lessons' questions that memory answers / all lessons' questions;
    risk = wrong among what memory answers, where answering a question that no lesson is about is wrong.
    """
    total = sum(applies for _, _, applies in decisions)
    curve: Curve = []
    spoken = wrong = covered = 0
    ranked = sorted(decisions, key=lambda decision: -decision[0])
    for place, (confidence, right, applies) in enumerate(ranked):
        if confidence <= 0:
            break
        spoken, wrong, covered = spoken + 1, wrong + (not right), covered + applies
        last_of_equals = place + 1 == len(ranked) or ranked[place + 1][0] < confidence
        if last_of_equals and total:
            curve.append([covered / total, wrong / spoken])
    return _thinned(curve)


def _thinned(curve: Curve) -> Curve:
    if len(curve) <= CURVE_POINTS:
        return curve
    return [curve[round(place * (len(curve) - 1) / (CURVE_POINTS - 1))] for place in range(CURVE_POINTS)]


def _time_measured(played: Mapping[str, Sequence[Played]]) -> dict[str, Any]:
    """Under which load times were measured: the most CPU that other processes used meanwhile."""
    cores = [value for orders in played.values() for order in orders for value in order.others_cores.values()]
    most = max(cores, default=0.0)
    return {
        "others_cores": round(most, 2),
        "label": "alone" if most <= ALONE else f"under load ({most:.1f} cores busy)",
    }
