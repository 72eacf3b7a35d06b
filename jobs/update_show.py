"""What ``agm update`` shows, and its check: one cycle on lessons from a file, in a temporary home."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from jobs import entry, local
from pipeline.config import Recipe
from pipeline.data.lines import LessonLine, ProbeLine, read_lines
from pipeline.evaluate.result import Result
from pipeline.home import Home

if TYPE_CHECKING:
    from pipeline.train.cycle import CycleResult


def check(recipe: Recipe, lessons: Path, probes: Path | None, out: Path) -> None:
    """Write the result to ``out``; AGM_HOME is not touched."""
    lines = read_lines(lessons, LessonLine)
    unrelated = read_lines(probes, ProbeLine) if probes is not None else None
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="agm-check-") as folder:
        home = Home(Path(folder).resolve())
        with local.connect(home, recipe):
            from pipeline.evaluate.update_check import check_update

            with entry.bar() as progress:
                task = progress.add_task("starting", total=1)
                found = check_update(
                    home, recipe, lines, unrelated,
                    say=lambda stage, total, done: progress.update(
                        task, description=stage, total=total, completed=done
                    ),
                )  # fmt: skip
    found.write(out)
    _show_check(found)
    entry.console.print(f"written to {out}", highlight=False)


def _show_check(found: Result) -> None:
    lessons = found.measures["lessons"]
    table = Table("measure (lesson memory off)", "value  [95 % interval]", title=f"One cycle on {lessons} lessons")
    for name, value in found.last("challenger")[1].items():
        table.add_row(name, f"{value.value:.3f}  [{value.low:.3f}, {value.high:.3f}]  n={value.n}")
    table.add_row("seconds", f"{found.measures['seconds']:.0f}")
    entry.console.print(table)
    entry.console.print(f"the gate would have {'promoted' if found.measures['promoted'] else 'refused'} it:")
    _show_reasons(found.measures["reasons"])


def show(result: CycleResult) -> None:
    if result.verdict is None:
        entry.console.print(f"cycle {result.cycle}: no accepted lesson since the champion; nothing to train")
        return
    decided = "[green]promoted[/green]" if result.verdict.promoted else "[red]refused[/red]"
    table = Table(
        "measure (memory off)", "value  [95 % interval]", title=f"Cycle {result.cycle}: version {result.version}"
    )
    for name, value in result.measures.items():
        if isinstance(value, dict):
            table.add_row(name, f"{value['value']:.3f}  [{value['low']:.3f}, {value['high']:.3f}]  n={value['n']}")
    entry.console.print(table)
    entry.console.print(f"the challenger was {decided}:")
    _show_reasons(result.verdict.reasons)


def _show_reasons(reasons: Sequence[str]) -> None:
    for reason in reasons:
        entry.console.print(f"  - {reason}", markup=False, highlight=False)
