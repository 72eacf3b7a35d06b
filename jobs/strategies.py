"""``agm strategies``: which strategy answers what, and the weights of the choice between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jobs import entry
from jobs.starting import starting_point
from pipeline.data.lines import LessonLine, Line, ProbeLine, read_lines
from pipeline.home import submitter_home


def command(
    lessons: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="JSONL, with paraphrases and neighbours")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="the result, or with --fit the policy (JSON)")],
    fit: Annotated[bool, typer.Option("--fit", help="fit the policy on these lessons instead of comparing")] = False,
    probes: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="questions of your own besides: JSONL with question, answers, kind"
        ),
    ] = None,
    part: Annotated[str | None, typer.Option(help="only the lines whose field 'part' is this")] = None,
    rows: Annotated[str | None, typer.Option(help="only these lines of the file, e.g. 3000:3200")] = None,
    per_kind: Annotated[int, typer.Option(min=0, help="generated probes of each kind, at most")] = 100,
    seed: Annotated[int, typer.Option(help="of the probes")] = 0,
    recipe: entry.RecipePath = None,
) -> None:
    """Ask ordinary questions, paraphrases, neighbours and questions where copying is wrong, with each strategy.

    Prints a table and the paired test of `adaptive` against the best single strategy. With `--fit` the same probes fit
    the policy instead: keep lines to fit on and lines to report on apart. Questions of your own (`--probes`) without
    answers are right if the output is what it is without memory; `examples/world_changes/turned.jsonl` has some.

    Example: `agm strategies --lessons examples/world_changes/lessons.jsonl --part report --out strategies.json`
    """
    lines = _chosen(read_lines(lessons, LessonLine), part, rows)
    if not lines:
        raise entry.UserError("--lessons: no line is left; look at --part and --rows")
    with entry.console.status("loading the answerer"):
        from pipeline.evaluate.strategies_report import CHOSEN, Sitting, compare_strategies, given_probes, mixed_probes
        from pipeline.evaluate.systems import make_bench
        from pipeline.evaluate.tables import tables
        from pipeline.memory.policy_fit import fit_policy
        from pipeline.model.answerer import Answerer

        settings, bundle, _ = starting_point(submitter_home(), recipe)
        bench = make_bench(settings, Answerer.load(bundle), bundle.router)
    own = _in_part(read_lines(probes, ProbeLine), part) if probes else []
    if probes and not own:
        raise entry.UserError(f"--probes {probes}: no line is left in part {part!r}")
    asked = [*mixed_probes(lines, per_kind, seed), *given_probes(own)]
    if not asked:
        raise entry.UserError("--per-kind 0 leaves nothing to ask: name your own questions with --probes")
    with entry.bar() as progress:
        task = progress.add_task("asking", total=1)
        sitting = Sitting(
            lines, asked, bench,
            progress=lambda total, done: progress.update(task, total=total, completed=done),
        )  # fmt: skip
        found = fit_policy(sitting.trials(), CHOSEN) if fit else compare_strategies(sitting)
    out.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(found, dict):
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    found.write(out)
    for table in tables(found, title=f"{len(lines)} lessons, mixed probes"):
        entry.console.print(table)
    entry.console.print(found.measures)


def _chosen(lines: list[LessonLine], part: str | None, rows: str | None) -> list[LessonLine]:
    if rows is not None:
        start, colon, stop = rows.partition(":")
        if not (colon and start.isdigit() and stop.isdigit()):
            raise entry.UserError(f"--rows {rows}: give the first line and the one after the last, e.g. 3000:3200")
        lines = lines[int(start) : int(stop)]
    return _in_part(lines, part)


def _in_part(lines: list[Line], part: str | None) -> list[Line]:
    return [line for line in lines if part is None or (line.model_extra or {}).get("part") == part]


main = entry.main(command)

if __name__ == "__main__":
    main()
