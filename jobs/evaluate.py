"""``agm evaluate``: lessons in a stream, and how systems take them."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from jobs import entry
from jobs.starting import starting_point
from pipeline.data.lines import LessonLine, read_lines, write_lines
from pipeline.home import submitter_home

Existing = typer.Option(exists=True, dir_okay=False, help="JSONL")


def command(
    lessons: Annotated[Path, Existing],
    out: Annotated[Path, typer.Option(dir_okay=False, help="the result (JSON); its plot is put beside it")],
    probes: Annotated[Path | None, Existing] = None,
    systems: Annotated[str, typer.Option(help="names, separated by commas")] = "uncorrected,memory,exact_match",
    lengths: Annotated[str | None, typer.Option(help="default: powers of ten, and the whole file")] = None,
    recipe: entry.RecipePath = None,
    seed: Annotated[int | None, typer.Option(help="shuffle the lessons first; default: the file's order")] = None,
) -> None:
    """Teach lessons one by one and ask: reliability, generality (paraphrases), locality (neighbours), retention.

    Length L: all probes of the first L lessons, asked after lesson L. The answerer is AGM_HOME's champion where there
    is one, else the recipe's model; with a champion the result is an MLflow run, too.

    Example: `agm evaluate --lessons examples/world_changes/lessons.jsonl --lengths 10,100 --out result.json`
    """
    home, lines = submitter_home(), read_lines(lessons, LessonLine)
    names, steps = [name.strip() for name in systems.split(",")], _lengths(lengths, len(lines))
    with entry.console.status("loading the answerer"):
        from jobs.entry import bar
        from pipeline.evaluate import plots, result, stream
        from pipeline.evaluate.systems import SYSTEMS, make_bench
        from pipeline.model.answerer import Answerer
        from pipeline.tracking.logging import result_run

        if unknown := [name for name in names if name not in SYSTEMS]:
            raise entry.UserError(f"--systems {', '.join(unknown)}: known systems are {', '.join(SYSTEMS)}")
        settings, bundle, version = starting_point(home, recipe)
        bench = make_bench(settings, Answerer.load(bundle), bundle.router)
    with tempfile.TemporaryDirectory() as folder, bar() as progress:
        if seed is not None:
            lessons = Path(folder) / lessons.name
            write_lines(lessons, random.Random(seed).sample(lines, len(lines)))
        task = progress.add_task("asking", total=1)
        found = stream.evaluate_files(
            lessons, probes, names, steps, bench,
            progress=lambda total, done: progress.update(task, total=total, completed=done),
        )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    found.write(out)
    plots.quality_plot(found, out.with_suffix(".png"))
    entry.console.print(result.table(found, title=f"{lessons.name}, after so many lessons"))
    if version is not None:
        params = {"lessons": len(lines), "systems": systems, "seed": seed, "version": version}
        result_run(home, f"evaluate {out.stem}", found, params, [out, out.with_suffix(".png")])


def _lengths(given: str | None, available: int) -> list[int]:
    if not available:
        raise entry.UserError("--lessons: the file holds no lesson")
    if given is None:
        return sorted({*(10**n for n in range(1, 7) if 10**n < available), available})
    parts = [part.strip() for part in given.split(",")]
    if not all(part.isdigit() and 1 <= int(part) <= available for part in parts):
        raise entry.UserError(
            f"--lengths {given}: give numbers from 1 to {available}, the number of lessons in the file"
        )
    return [int(part) for part in parts]


main = entry.main(command)

if __name__ == "__main__":
    main()
