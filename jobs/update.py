"""``agm update``: one cycle on this home's feedback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jobs import entry, local
from jobs.initialise import initialise
from pipeline.config import load_recipe
from pipeline.home import submitter_home
from pipeline.train.cycle import CycleResult, run_cycle

REFUSED = 3  # the exit code of a cycle whose challenger was refused


def command(
    recipe: entry.RecipePath = None,
    lessons: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="lesson lines to take in first, as an admin would")
    ] = None,
) -> None:
    """One cycle: train a challenger on the feedback since the champion, compare, promote or refuse with reasons.

    An interrupted cycle goes on where it stopped. Exit code 3 means that the gate refused the challenger.

    Example: `agm update --recipe examples/laptop.yaml`
    """
    home, settings = submitter_home(), load_recipe(recipe)
    with local.connect(home, settings):
        engine = initialise(home, settings)
        if lessons is not None:
            from jobs.intake import take_in

            take_in(engine, lessons)
        with entry.bar() as progress:
            task = progress.add_task("starting", total=1)
            result = run_cycle(
                home,
                settings,
                say=lambda stage, total, done: progress.update(task, description=stage, total=total, completed=done),
            )
    show(result)
    if result.verdict is not None and not result.verdict.promoted:
        raise SystemExit(REFUSED)


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
    for reason in result.verdict.reasons:
        entry.console.print(f"  - {reason}", markup=False, highlight=False)


main = entry.main(command)

if __name__ == "__main__":
    main()
