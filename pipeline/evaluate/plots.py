"""Figures for reports, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluate.metrics import Interval
from pipeline.evaluate.result import Result

COLOURS = ("#3b6fb6", "#d1743c", "#4f9a62", "#8d5fa8", "#a3443f", "#6f6f6f")
QUALITY = ("reliability", "generality", "locality", "retention_first", "abstention", "mixed")
WIDE = 20  # the ratio of lengths from which they are drawn on a logarithmic axis


def all_plots(result: Result, beside: Path) -> list[Path]:
    """Quality beside the result as ``.png``, risk against coverage as ``.risk.png``; the files drawn."""
    quality, risk = beside.with_suffix(".png"), beside.with_suffix(".risk.png")
    quality_plot(result, quality)
    return [quality, risk] if risk_plot(result, risk) else [quality]


def quality_plot(result: Result, path: Path) -> None:
    """Each metric over the length of the stream, one line per system, with its interval."""
    present = result.metrics()
    metrics = [metric for metric in QUALITY if metric in present] or present
    if not metrics:
        raise ValueError("the result holds no system, so there is nothing to draw")
    rows = -(-len(metrics) // 3)
    columns = min(len(metrics), 3)
    figure = _figure(width=3.4 * columns, height=2.9 * rows + 0.6)
    panels: list[Axes] = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()
    for panel, metric in zip(panels, metrics, strict=False):
        _lines(panel, result, metric)
    for panel in panels[len(metrics) :]:
        panel.set_axis_off()
    _legend(figure, panels[0])
    figure.savefig(path, dpi=120)


def risk_plot(result: Result, path: Path) -> bool:
    """Risk against coverage as a threshold on each system's confidence falls; ``False`` where no system has one."""
    curves = {name: points for name, points in result.measures.get("risk_coverage", {}).items() if points}
    if not curves:
        return False
    figure = _figure(width=5.4, height=4.2)
    axes = figure.subplots()
    for name, points in curves.items():
        coverage, risk = zip(*points, strict=True)
        axes.plot(coverage, risk, label=name, marker=".", markersize=3, **_style(list(result.systems).index(name)))
    axes.set(xlabel="coverage: lessons' questions answered from memory", xlim=(-0.02, 1.02), ylim=(-0.02, None))
    axes.set_ylabel("risk: wrong among those answered from memory")
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, axes)
    figure.savefig(path, dpi=120)
    return True


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


def _style(number: int) -> dict[str, Any]:
    """Colours, and another dash once they are used up."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": ("-", "--", ":")[number // len(COLOURS) % 3]}


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


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
            **_style(number),
            marker="o",
            markersize=4,
            capsize=3,
        )
    panel.set_title(metric, fontsize=10)
    panel.set_xlabel("lessons taught")
    taught = [int(length) for lengths in result.systems.values() for length in lengths]
    if max(taught) / min(taught) >= WIDE:
        panel.set_xscale("log")
    panel.set_ylim(-0.03, 1.03)
    panel.spines[["top", "right"]].set_visible(False)


def _errors(figures: Sequence[Interval]) -> list[list[float]]:
    """Distances below and above each value, as matplotlib wants them."""
    return [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
