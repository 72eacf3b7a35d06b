"""A result on the terminal: several tables that fit 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from pipeline.evaluate.metrics import Interval
from pipeline.evaluate.result import Result

# title, metrics, whether every length is shown or the last one alone
GROUPS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Corrections", ("reliability", "generality", "retention_first"), True),
    ("What has to stay", ("locality", "abstention", "retention"), True),
    ("Typed in a hurry", ("perturbed_generality", "perturbed_locality", "dropped_word"), False),
    ("... of these", ("typo", "case"), False),
    ("Near misses, output unchanged", ("other_relation", "other_subject"), False),
    ("A lesson bears on it and copying is wrong", ("copy_wrong", "mixed"), False),
    ("... of these", ("copy_wrong_yes", "copy_wrong_no", "copy_wrong_compare"), False),
    ("... of these", ("copy_wrong_reversed", "copy_wrong_two_hop"), False),
    ("Corrected twice: outdated answers (lower is better)", ("stale", "stale_reworded"), False),
    ("Corrected twice: new answers", ("overwritten", "overwritten_reworded"), False),
    ("Neighbours, counted otherwise", ("locality_as_written", "locality_first_token"), False),
    ("Extras", ("probes_right", "noise_floor"), False),
)
COST = ("latency_p50_ms", "latency_p95_ms", "memory_bytes", "teaching_s")
SPREAD = ("reliability", "generality", "locality", "retention_first")
TOLD = "subject_index"


def tables(result: Result, title: str = "") -> Iterator[Table]:
    """Shares with 95 % Wilson intervals by theme, then their spread over orders, paired tests, and cost."""
    present = set(result.metrics())
    shown = {metric for _, metrics, _ in GROUPS for metric in metrics} | {*COST}
    others = [metric for metric in result.metrics() if metric not in shown]
    rest = [(title if start == 0 else "", tuple(others[start : start + 3]), True) for start in range(0, len(others), 3)]
    for theme, metrics, every in (*GROUPS, *rest):
        if found := [metric for metric in metrics if metric in present]:
            yield _shares(result, f"{title}: {theme}" if title and theme == GROUPS[0][0] else theme, found, every)
    if any(len(orders) > 1 for orders in result.measures.get("orders", {}).values()):
        yield _spreads(result)
    if leader := _leader(result):
        yield _tests(result, leader)
    if present & {*COST}:
        yield _costs(result)


def _shares(result: Result, title: str, metrics: Sequence[str], every: bool) -> Table:
    drawn = _table(title, ("system", "lessons"), metrics, caption=_counts(result, metrics))
    for system, lengths in result.systems.items():
        rows = [(length, cell) for length, cell in lengths.items() if any(metric in cell for metric in metrics)]
        for length, cell in rows if every else rows[-1:]:
            drawn.add_row(_named(system), length, *(_figure(cell.get(metric)) for metric in metrics))
    return drawn


def _spreads(result: Result) -> Table:
    metrics = [metric for metric in SPREAD if metric in result.metrics()]
    drawn = _table("Spread over orders: largest minus smallest share", ("system", "lessons"), metrics)
    for system, lengths in result.systems.items():
        for length in lengths:
            values = [result.spread(system, length, metric) for metric in metrics]
            if any(value is not None for value in values):
                drawn.add_row(_named(system), length, *("–" if v is None else f"{v:.3f}" for v in values))
    return drawn


def _tests(result: Result, leader: str) -> Table:
    """McNemar at the longest length that both systems have."""
    by_length: dict[str, Any] = result.measures["mcnemar"]
    metrics = [m for m in ("reliability", "generality", "locality", "mixed") if m in result.metrics()]
    drawn = _table(
        f"{leader} against each other system: only it right / only the other right, p", ("", "lessons"), metrics
    )
    for other in result.systems:
        shared = [length for length in by_length if other in by_length[length].get(leader, {})]
        if shared:
            length = max(shared, key=int)
            pairs = by_length[length][leader][other]
            drawn.add_row(_named(other), length, *(_test(pairs.get(metric)) for metric in metrics))
    drawn.caption = "McNemar, exact and two-sided, on each question's first asking"
    return drawn


def _costs(result: Result) -> Table:
    load = result.measures.get("time_measured", {}).get("label", "")
    drawn = _table(
        f"Cost ({load})" if load else "Cost", ("system", "lessons"), ("p50 ms", "p95 ms", "memory", "teaching s")
    )
    for system in result.systems:
        length, cell = result.last(system)
        p50, p95, size, teaching = (cell.get(metric) for metric in COST)
        drawn.add_row(_named(system), length, _plain(p50, 0), _plain(p95, 0), _size(size), _plain(teaching, 1))
    drawn.caption = "one question of a taught lesson at a time; memory: what would be saved, models not counted"
    return drawn


def _table(title: str, left: Sequence[str], right: Sequence[str], caption: str | None = None) -> Table:
    drawn = Table(title=title, caption=caption, box=SIMPLE, title_justify="left", caption_justify="left")
    drawn.add_column(left[0])
    for name in (*left[1:], *right):
        drawn.add_column(name, justify="right")
    return drawn


def _counts(result: Result, metrics: Sequence[str]) -> str:
    """n of each metric at the longest length of any system."""
    cells = [result.last(system)[1] for system in result.systems]
    counts = {metric: max((cell[metric].n for cell in cells if metric in cell), default=0) for metric in metrics}
    told = f"; {_named(TOLD)} is told each lesson's subject" if TOLD in result.systems else ""
    return "n at the last length: " + ", ".join(f"{metric} {n}" for metric, n in counts.items()) + told


def _leader(result: Result) -> str | None:
    """The system that paired tests are shown for: the first of the product's own."""
    tested = {name for systems in result.measures.get("mcnemar", {}).values() for name in systems}
    return next((name for name in ("memory", "adaptive", "copy", "context", *result.systems) if name in tested), None)


def _named(system: str) -> str:
    return f"{system} (told)" if system == TOLD else system


def _figure(found: Interval | None) -> str:
    if found is None or found.n == 0:
        return "–"
    return f"{found.value:.3f} [{_short(found.low)}, {_short(found.high)}]"


def _short(share: float) -> str:
    return f"{share:.3f}".removeprefix("0")


def _test(pair: dict[str, Any] | None) -> str:
    return "–" if pair is None else f"{pair['gained']} / {pair['lost']}, {pair['p']:.1g}"


def _plain(found: Interval | None, digits: int) -> str:
    return "–" if found is None else f"{found.value:.{digits}f}"


def _size(found: Interval | None) -> str:
    if found is None:
        return "–"
    value = found.value
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
