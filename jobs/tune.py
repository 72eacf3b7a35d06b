"""``agm tune``: a Ray Tune search over memory strategy and learning rate."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jobs import entry, local
from jobs.initialise import initialise
from pipeline.config import load_recipe
from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, ProbeLine, read_lines
from pipeline.home import submitter_home

if TYPE_CHECKING:
    from pipeline.train.search import Found

DEFAULT_LESSONS = 16
UNRELATED = 32


def command(
    recipe: entry.RecipePath = None,
    lessons: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="lesson lines; default: 16 of the example stream")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="points of the search")] = 8,
    name: Annotated[str | None, typer.Option(help="the same name goes on with an interrupted search")] = None,
    seed: Annotated[int, typer.Option(help="of the random search")] = 0,
    optimizers: Annotated[bool, typer.Option("--optimizers", help="search the optimizer as well")] = False,
) -> None:
    """Search memory strategy and learning rate, starting from the champion; feedback and champion stay as they are.

    A trial trains on the lessons and is measured with memory on and off: half of its objective is the mean of
    reliability, generality and locality with memory, half the mean of what the weights alone have learned and kept.
    AGM_HOME/tune/NAME gets recipe.yaml (for `agm update --recipe`), trials.json and a plot.

    Example: `agm tune --trials 8 --name first`
    """
    home, settings = submitter_home(), load_recipe(recipe)
    lines = read_lines(lessons, LessonLine) if lessons else read_lines(_stream(), LessonLine)[:DEFAULT_LESSONS]
    if not lines:
        raise entry.UserError(f"{lessons} holds no lesson")
    with local.connect(home, settings):
        from jobs.entry import bar
        from pipeline.tracking.registry import Registry
        from pipeline.train.search import Search, search

        champion = Registry(home, initialise(home, settings)).champion()
        assert champion is not None
        wanted = Search(
            name=name or f"{datetime.now():%Y%m%d-%H%M%S}",
            recipe=settings,
            champion=champion.folder,
            lessons=tuple(lines),
            unrelated=tuple(line.question for line in _probes("unrelated")[:UNRELATED]),
            replay=tuple(line.question for line in _probes("prompts")),
            trials=trials,
            seed=seed,
            optimizers=optimizers,
        )
        with bar() as progress:
            task = progress.add_task(f"search {wanted.name}", total=trials)
            found = search(
                home, wanted, progress=lambda total, done: progress.update(task, total=total, completed=done)
            )
    _show(found)


def _stream() -> Path:
    return example("world_changes/lessons.jsonl")


def _probes(name: str) -> list[ProbeLine]:
    return read_lines(example(f"replay/{name}.jsonl"), ProbeLine)


def _show(found: Found) -> None:
    searched = list(found.trials[0].changes)
    table = Table("trial", *(field.split(".")[-1] for field in searched), "objective", "learned", "kept")
    for trial in found.trials:
        values = [trial.changes[field] for field in searched]
        shown = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in values]
        table.add_row(trial.id, *shown, *(f"{trial.measures[m]:.3f}" for m in ("objective", "learned", "kept")))
    entry.console.print(table)
    entry.console.print(f"the best: agm update --recipe {found.recipe}", markup=False, highlight=False, soft_wrap=True)


main = entry.main(command)

if __name__ == "__main__":
    main()
