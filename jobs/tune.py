"""``agm tune``: a Ray Tune search over memory strategy, method and step sizes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from jobs import entry, local
from jobs.initialise import initialise
from pipeline.config import Recipe, load_recipe
from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, ProbeLine, read_lines
from pipeline.evaluate.progress import batches
from pipeline.home import Home, submitter_home

if TYPE_CHECKING:
    from pipeline.tuning.search import Found, Search

UNRELATED = 32


def command(
    recipe: entry.RecipePath = None,
    space: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="YAML: fields and what they may be (examples/tune/space.yaml)"),
    ] = None,
    searcher: Annotated[
        Literal["random", "grid", "model"], typer.Option(help="how points are chosen; model: Optuna's TPE")
    ] = "random",
    trials: Annotated[int, typer.Option(min=1, help="points of the search; a grid takes all of its own")] = 8,
    lessons: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="lesson lines; default: the example stream")
    ] = None,
    cycles: Annotated[
        int, typer.Option(min=1, help="update cycles that a trial goes through, one after the other")
    ] = 2,
    check: Annotated[
        int, typer.Option(min=0, help="cycles that no trial sees; the winner meets the given recipe there")
    ] = 1,
    per_cycle: Annotated[int, typer.Option(min=1, help="lessons of a cycle")] = 8,
    early_stop: Annotated[
        bool, typer.Option(help="ASHA: after each cycle only the best third of the trials so far goes on")
    ] = True,
    max_answer_ms: Annotated[
        float | None, typer.Option(min=0, help="a trial whose median answer takes longer ranks behind all others")
    ] = None,
    name: Annotated[str | None, typer.Option(help="the same name goes on with an interrupted search")] = None,
    seed: Annotated[int, typer.Option(help="of the searcher")] = 0,
) -> None:
    """Search the recipe, starting from the champion; feedback and champion stay as they are.

    A trial goes through a sequence of update cycles and is measured after each, with memory on and off: half of its
    objective is the mean of reliability, generality and locality with memory, half the mean of what the weights alone
    still know of all cycles so far and of unrelated prompts. AGM_HOME/tune/NAME gets recipe.yaml (for `agm update
    --recipe`), trials.json, check.json, a plot of learned against forgotten, and the best trial's bundle.

    Example: `agm tune --trials 8 --name first` or
    `agm tune --space examples/tune/space.yaml --searcher model --trials 40 --cycles 5 --per-cycle 20`
    """
    home, settings = submitter_home(), load_recipe(recipe)
    log = _cycles(lessons, cycles + check, per_cycle)
    with local.connect(home, settings):
        from jobs.entry import bar
        from pipeline.train.replayed import shipped_prompts
        from pipeline.tuning.search import Search, search
        from pipeline.tuning.sequence import Probes
        from pipeline.tuning.space import default_space, load_space

        wanted = Search(
            name=name or f"{datetime.now():%Y%m%d-%H%M%S}",
            recipe=settings,
            champion=_champion(home, settings),
            log=log[:cycles],
            check=log[cycles:],
            probes=Probes(_unrelated(), shipped_prompts()),
            space=load_space(space, settings) if space else default_space(settings),
            searcher=searcher,
            trials=trials,
            early_stop=early_stop,
            max_answer_ms=max_answer_ms,
            seed=seed,
        )
        with bar() as progress:
            task = progress.add_task(f"search {wanted.name}: cycles", total=wanted.steps)
            found = search(
                home, wanted, progress=lambda total, done: progress.update(task, total=total, completed=done)
            )
    _show(wanted, found)


def _cycles(lessons: Path | None, cycles: int, per_cycle: int) -> tuple[tuple[LessonLine, ...], ...]:
    file = lessons or example("world_changes/lessons.jsonl")
    lines = read_lines(file, LessonLine)
    if len(lines) < cycles * per_cycle:
        raise entry.UserError(
            f"{file} holds {len(lines)} lessons, and {cycles} cycles of {per_cycle} need {cycles * per_cycle}: lower "
            "--per-cycle, --cycles or --check"
        )
    return tuple(map(tuple, batches(lines[: cycles * per_cycle], per_cycle)))


def _champion(home: Home, settings: Recipe) -> Path:
    from pipeline.tracking.registry import Registry

    champion = Registry(home, initialise(home, settings)).champion()
    assert champion is not None
    return champion.folder


def _unrelated() -> tuple[str, ...]:
    return tuple(line.question for line in read_lines(example("replay/unrelated.jsonl"), ProbeLine)[:UNRELATED])


def _show(wanted: Search, found: Found) -> None:
    searched = list(found.trials[0].point)
    figures = ("objective", "learned", "kept", "answer_ms")
    table = Table("trial", *(field.split(".")[-1] for field in searched), "cycles", *figures)
    for trial in found.trials:
        values = [trial.changes.get(field, trial.point[field]) for field in searched]
        shown = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in values]
        table.add_row(trial.id, *shown, str(len(trial.cycles)), *(f"{trial.measures[m]:.3f}" for m in figures))
    entry.console.print(table)
    if wanted.slow(found.trials[0].cycles[-1]):
        entry.console.print(f"no trial answers within {wanted.max_answer_ms:g} ms: --max-answer-ms is too low")
    if found.check:
        before, after = (found.check[which]["objective"] for which in ("default", "best"))
        told = f"on {len(wanted.check)} unseen cycle(s): the best recipe {after:.3f}, the given one {before:.3f}"
        entry.console.print(told + ("" if after > before else "; the search found nothing better"))
    entry.console.print(f"the best: agm update --recipe {found.recipe}", markup=False, highlight=False, soft_wrap=True)


main = entry.main(command)

if __name__ == "__main__":
    main()
