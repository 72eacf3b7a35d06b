"""``agm update``: one cycle on this home's feedback, or a check of one cycle on lessons from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs import entry, local
from jobs.initialise import initialise
from jobs.update_show import check, show
from pipeline.config import load_recipe
from pipeline.home import submitter_home

REFUSED = 3  # the exit code of a cycle whose challenger was refused


def command(
    recipe: entry.RecipePath = None,
    lessons: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="lessons to take in first, as agm feedback import"),
    ] = None,
    probes: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="with --out: unrelated prompts, instead of ours")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="check a cycle on --lessons in a home of its own; result (JSON)")
    ] = None,
) -> None:
    """One cycle: train a challenger on the feedback since the champion, compare, promote or refuse with reasons.

    An interrupted cycle goes on where it stopped. Exit code 3 means that the gate refused the challenger. With
    ``--out`` nothing here is changed: a temporary home trains one cycle on the questions and answers of ``--lessons``,
    and the result says what its weights alone answer, also to the file's paraphrases and neighbours.

    Example: `agm update --recipe examples/laptop.yaml`

    Example: `agm update --lessons examples/world_changes/lessons.jsonl --out result.json`
    """
    home, settings = submitter_home(), load_recipe(recipe)
    if out is not None and lessons is not None:
        return check(settings, lessons, probes, out)
    if out is not None or probes is not None:
        raise entry.UserError("--out and --probes belong to a check: give --lessons FILE --out FILE, and --probes FILE")
    with local.connect(home, settings):
        from pipeline.train.cycle import run_cycle

        engine = initialise(home, settings)
        if lessons is not None:
            from jobs.intake import redacting_log, take_in

            take_in(redacting_log(engine, settings), lessons)
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
    return None


main = entry.main(command)

if __name__ == "__main__":
    main()
