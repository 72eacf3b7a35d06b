"""What a search found, at a glance: learned against forgotten, and the front that no trial beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.tuning.search import Trial

PLOT_FILE = "learned_against_forgotten.png"

Point = tuple[float, float]  # (forgotten, learned)


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: points that no other one beats, with less forgotten or more learned; by what they forget."""
    best: list[Point] = []
    for forgotten, learned in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or learned > best[-1][1]:
            best.append((forgotten, learned))
    return best


def plot(trials: Sequence[Trial], cycles: int, path: Path) -> None:
    """One colour per method, or per strategy where no method was searched; the best trial, first of all, is ringed.

    Trials that were stopped before the last of the ``cycles`` are hollow and not part of the front.
    """
    from matplotlib.figure import Figure

    from pipeline.evaluate.plots import COLOURS

    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(_group(trial) for trial in trials))
    for number, group in enumerate(groups):
        colour = COLOURS[number % len(COLOURS)]
        members = [trial for trial in trials if _group(trial) == group]
        axes.scatter([], [], color=colour, label=group)
        for whole in (True, False):
            points = [_point(trial) for trial in members if (len(trial.cycles) == cycles) is whole]
            filled: dict[str, Any] = {"color": colour} if whole else {"facecolors": "none", "edgecolors": colour}
            axes.scatter([x for x, _ in points], [y for _, y in points], **filled)
    edge = front([_point(trial) for trial in trials if len(trial.cycles) == cycles])
    axes.step([x for x, _ in edge], [y for _, y in edge], where="post", color="#9a9a9a", linewidth=1, zorder=0)
    axes.scatter(*_point(trials[0]), s=160, facecolors="none", edgecolors="black", label="best")
    axes.set(xlabel="forgotten: 1 - kept", ylabel="learned", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _point(trial: Trial) -> Point:
    return 1 - trial.measures["kept"], trial.measures["learned"]


def _group(trial: Trial) -> str:
    return str(trial.point.get("method", trial.changes.get("memory.strategy", "trials")))
