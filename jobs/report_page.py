"""``report.html``: one self-contained file, readable in light and dark."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jobs import report
from pipeline.evaluate import transcript
from pipeline.evaluate.transcript import Correction, Cycle, Record, Request

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"  # drawn with this, shown as the page's own text colour
TEAL, ORANGE = "#2a9d8f", "#e07a3f"

Draw = Callable[["Axes"], None]


def render(content: dict[str, Any], records: Sequence[Record]) -> str:
    """The page for what :func:`jobs.report.report` computed."""
    pages = Environment(loader=PackageLoader("jobs"), autoescape=True, undefined=StrictUndefined)
    return pages.get_template("report.html.j2").render(
        content=content,
        goals=report.GOALS,
        shown=report.shown,
        plots=_plots(content, records),
        examples=_examples(records),
    )


def _plots(content: dict[str, Any], records: Sequence[Record]) -> list[tuple[str, Markup]]:
    drawn: list[tuple[str, Draw]] = [
        ("Shares, with 95 % intervals, against their goals", lambda axes: _shares(axes, content["measures"])),
        ("Right so far, over the corrections", lambda axes: _course(axes, records)),
        ("From correction to corrected answer", lambda axes: _delays(axes, records)),
        ("Requests while the cycle ran and the model was swapped", lambda axes: _load(axes, records)),
    ]
    if way := _way(records):
        drawn.append(("One correction's way: what it touched", lambda axes: _lineage(axes, way)))
    return [(title, _svg(draw)) for title, draw in drawn]


def _svg(draw: Draw) -> Markup:
    """One plot as inline SVG without a background."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    style |= {"svg.fonttype": "none", "svg.hashsalt": "agm", "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(7, 2.8), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :].replace(INK, "currentColor"))


def _shares(axes: Axes, measures: dict[str, Any]) -> None:
    names = [name for name, figure in measures.items() if isinstance(figure, dict) and "low" in figure]
    for row, name in enumerate(reversed(names)):
        figure, goal = measures[name], report.GOALS[name].least
        axes.plot([figure["low"], figure["high"]], [row, row], color=TEAL, linewidth=5, alpha=0.35)
        axes.plot(figure["value"], row, "o", color=TEAL)
        if goal is not None:
            axes.plot(goal, row, "|", color=ORANGE, markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_xlim(0, 1.02)


def _course(axes: Axes, records: Sequence[Record]) -> None:
    for kind, colour in (("question", TEAL), ("paraphrase", ORANGE)):
        asked = sorted(transcript.requests(records, "adjust", "on", kind), key=lambda request: request.time)
        right = list(accumulate(request.right for request in asked))
        axes.plot([done / (n + 1) for n, done in enumerate(right)], color=colour, label=kind)
    axes.set(ylim=(0, 1.05), xlabel="corrections", ylabel="share right")
    axes.legend(frameon=False)


def _delays(axes: Axes, records: Sequence[Record]) -> None:
    times = [r.ms_to_answer for r in records if isinstance(r, Correction) and r.ms_to_answer is not None]
    axes.hist(times, bins=min(30, max(len(times), 1)), color=TEAL)
    axes.axvline(report.GOALS["correction_to_answer_p95_ms"].most or 0, color=ORANGE)
    axes.set(xlabel="milliseconds (line: the goal for the 95th percentile)", ylabel="corrections")


def _load(axes: Axes, records: Sequence[Record]) -> None:
    load = [r for r in records if isinstance(r, Request) and r.phase == "load"]
    start = min((request.time for request in load), default=None)
    for version, colour in zip(sorted({r.model_version or 0 for r in load}), (TEAL, ORANGE) * 9, strict=False):
        points = [((r.time - start).total_seconds(), r.ms) for r in load if start and (r.model_version or 0) == version]
        axes.plot(*zip(*points, strict=True), ".", color=colour, label=f"version {version}" if version else "no answer")
    for cycle in (r for r in records if isinstance(r, Cycle) and start):
        axes.axvline((cycle.time - start).total_seconds(), color=INK, linewidth=0.8, linestyle=":")  # type: ignore[operator]
        axes.annotate(cycle.event, ((cycle.time - start).total_seconds(), 1), xycoords=("data", "axes fraction"))  # type: ignore[operator]
    axes.set(xlabel="seconds", ylabel="milliseconds")
    if load:
        axes.legend(frameon=False)


def _way(records: Sequence[Record]) -> list[str]:
    """The first correction that an answer cited, and what came of it, one step each."""
    posted = [r.lesson for r in records if isinstance(r, Correction) and r.lesson]
    cited = [r for r in records if isinstance(r, Request) and r.lesson_id and r.lesson_id in r.lessons]
    lesson = next((name for name in posted if any(request.lesson == name for request in cited)), None)
    if lesson is None:
        return []
    rests = [request for request in cited if request.lesson == lesson]
    later = [r for r in transcript.requests(records, "after", "off", "question") if r.lesson == lesson]
    steps = ["correction", f"lesson\n{str(rests[0].lesson_id)[:12]}", f"{len(rests)} answers\ncite it"]
    steps += ["cycle"] if any(isinstance(record, Cycle) for record in records) else []
    right = sum(request.right for request in later)
    return [*steps, *(f"version {r.model_version}\n{right} of {len(later)} by weights" for r in later[:1])]


def _lineage(axes: Axes, steps: Sequence[str]) -> None:
    for place, step in enumerate(steps):
        colour = ORANGE if place == 0 else TEAL
        axes.text(
            place, 0, step, ha="center", va="center", bbox={"boxstyle": "round,pad=0.6", "fc": "none", "ec": colour}
        )
        if place:
            axes.annotate("", (place - 0.32, 0), (place - 0.68, 0), arrowprops={"arrowstyle": "->", "color": INK})
    axes.set(xlim=(-0.5, len(steps) - 0.5), ylim=(-1, 1))
    axes.set_axis_off()


def _examples(records: Sequence[Record], most: int = 12) -> list[dict[str, Any]]:
    """For the first lessons: the raw answer before, right after the correction, and by the weights alone afterwards."""
    columns = {"before": ("before", "on"), "corrected": ("adjust", "on"), "weights": ("after", "off")}
    found: dict[str | None, dict[str, Any]] = {}
    for column, (phase, memory) in columns.items():
        for request in transcript.requests(records, phase, memory, "question"):
            row = found.setdefault(request.lesson, {"question": request.question, "expected": request.expected})
            row[column] = request
    return list(found.values())[:most]
