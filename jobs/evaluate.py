"""``agm evaluate``: lessons in a stream, and how systems take them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import entry
from jobs.starting import starting_point
from pipeline.home import submitter_home

if TYPE_CHECKING:
    from pipeline.evaluate.study import Lines

Existing = typer.Option(exists=True, dir_okay=False, help="JSONL")
SYSTEMS = "memory,uncorrected,exact_match,tfidf,subject_index,rag,grace"


def command(
    lessons: Annotated[list[Path], typer.Option(exists=True, dir_okay=False, help="JSONL; may be given repeatedly")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="the result (JSON); its plots are put beside it")],
    probes: Annotated[Path | None, Existing] = None,
    systems: Annotated[str, typer.Option(help="names, separated by commas")] = SYSTEMS,
    lengths: Annotated[str | None, typer.Option(help="default: powers of ten, and all lessons")] = None,
    part: Annotated[str | None, typer.Option(help="only lines whose field 'part' says so: fit or report")] = None,
    cut: Annotated[str | None, typer.Option("--slice", help="START:STOP, only these lines")] = None,
    shuffles: Annotated[int, typer.Option(min=0, help="orders of the lessons; 0: the file's own, once")] = 3,
    seed: Annotated[int, typer.Option(help="of the orders and of generated questions")] = 0,
    subtests: Annotated[int, typer.Option(min=0, help="lessons that each generated sub-test is made of")] = 300,
    recipe: entry.RecipePath = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="measure again what is kept beside --out")] = False,
) -> None:
    """Teach lessons one by one and ask: reliability, generality (paraphrases), locality (neighbours), and more.

    Length L: all questions about the first L lessons, asked after lesson L. The answerer is AGM_HOME's champion where
    there is one, else the recipe's model; with a champion the result is an MLflow run, too. What is finished is kept
    beside --out, so that the same command goes on after an interruption. The systems `fine_tuning`,
    `replay_fine_tuning` and `lora_replay` train for minutes per hundred lessons and are measured up to there.

    Example: `agm evaluate --lessons examples/world_changes/lessons.jsonl --part fit --lengths 10,100 --out result.json`
    """
    home = submitter_home()
    with entry.console.status("loading the answerer"):
        from pipeline.evaluate import plots, study
        from pipeline.evaluate.systems import load_bench
        from pipeline.evaluate.tables import tables
        from pipeline.tracking.logging import result_run

        lines = study.Lines.read(lessons, probes, part, cut)
        names = tuple(name.strip() for name in systems.split(","))
        wanted = study.Study(lines, names, _lengths(lengths, lines), shuffles, seed, subtests)
        settings, bundle, version = starting_point(home, recipe)
        bench = load_bench(settings, bundle)
    kept = out.with_suffix(".parts")
    if fresh:
        study.forget(kept)
    with entry.bar() as progress:
        task = progress.add_task("evaluate", total=1)
        found = study.run(
            wanted, bench, kept=kept,
            progress=lambda what, total, done: progress.update(task, description=what, total=total, completed=done),
        )  # fmt: skip
    found.write(out)
    figures = [out, *plots.all_plots(found, out)]
    for table in tables(found, title=", ".join(path.name for path in lessons)):
        entry.console.print(table)
    if version is not None:
        params = {"lessons": len(lines.lessons), "systems": systems, "seed": seed, "version": version}
        result_run(home, f"evaluate {out.stem}", found, params, figures)


def _lengths(given: str | None, lines: Lines) -> tuple[int, ...]:
    available = len(lines.lessons)
    if given is None:
        return tuple(sorted({*(10**n for n in range(7) if 10**n < available), available}))
    parts = [part.strip() for part in given.split(",")]
    if not all(part.isdigit() for part in parts):
        raise entry.UserError(f"--lengths {given}: give numbers from 1 to {available}, the number of lessons")
    return tuple(map(int, parts))


main = entry.main(command)

if __name__ == "__main__":
    main()
