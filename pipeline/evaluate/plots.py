"""Figures for reports, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluate.metrics import Interval
from pipeline.evaluate.result import Result

COLOURS = ("#3b6fb6", "#d1743c", "#4f9a62", "#8d5fa8", "#a3443f", "#6f6f6f")


def quality_plot(result: Result, path: Path) -> None:
    """Each metric over the length of the stream, one line per system, with its interval."""
    metrics = result.metrics()
    if not metrics:
        raise ValueError("the result holds no system, so there is nothing to draw")
    figure = _figure(width=3.4 * len(metrics), height=3.2)
    panels: Sequence[Axes] = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        _lines(panel, result, metric)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def bars(values: Mapping[str, Interval], path: Path, title: str) -> None:
    """One horizontal bar per figure, with its interval and its number of items."""
    figure = _figure(width=6.4, height=0.9 + 0.42 * len(values))
    axes = figure.subplots()
    names = [f"{name} (n = {value.n})" for name, value in values.items()]
    figures = list(values.values())
    axes.barh(names, [f.value for f in figures], xerr=_errors(figures), color=COLOURS[0], height=0.6, capsize=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _figure(width: float, height: float) -> Figure:
    """A figure of its own: pyplot would keep every one alive and choose a backend for the whole process."""
    return Figure(figsize=(width, height), layout="constrained")


def _lines(panel: Axes, result: Result, metric: str) -> None:
    for number, (system, lengths) in enumerate(result.systems.items()):
        points = sorted((int(length), cell[metric]) for length, cell in lengths.items() if metric in cell)
        if not points:
            continue
        figures = [figure for _, figure in points]
        panel.errorbar(
            [length for length, _ in points],
            [figure.value for figure in figures],
            yerr=_errors(figures),
            label=system,
            color=COLOURS[number % len(COLOURS)],
            marker="o",
            markersize=4,
            capsize=3,
        )
    panel.set_title(metric, fontsize=10)
    panel.set_xlabel("lessons taught")
    panel.set_ylim(-0.03, 1.03)
    panel.spines[["top", "right"]].set_visible(False)


def _errors(figures: Sequence[Interval]) -> list[list[float]]:
    """Distances below and above each value, as matplotlib wants them."""
    return [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
