"""``agm strategies``: which strategy answers what, and the weights of the choice between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jobs import entry
from jobs.starting import starting_point
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
    cut: Annotated[str | None, typer.Option("--slice", help="only these lines of the file, e.g. 3000:3200")] = None,
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
    with entry.console.status("loading the answerer"):
        from pipeline.evaluate.load import circumstances
        from pipeline.evaluate.strategies_report import CHOSEN, Sitting, compare_strategies, given_probes, mixed_probes
        from pipeline.evaluate.study import Lines
        from pipeline.evaluate.systems import make_bench
        from pipeline.evaluate.tables import tables
        from pipeline.memory.policy_fit import fit_policy
        from pipeline.model.answerer import Answerer

        read = Lines.read([lessons], probes, part, cut)
        asked = [*mixed_probes(read.lessons, per_kind, seed), *given_probes(read.probes, part)]
        if not asked:
            raise entry.UserError("nothing is asked: raise --per-kind, or name --probes that have lines of this part")
        settings, bundle, _ = starting_point(submitter_home(), recipe)
        bench = make_bench(settings, Answerer.load(bundle), bundle.router)
    began = circumstances()
    with entry.bar() as progress:
        task = progress.add_task("asking", total=1)
        sitting = Sitting(
            read.lessons, asked, bench,
            progress=lambda total, done: progress.update(task, total=total, completed=done),
        )  # fmt: skip
        found = fit_policy(sitting.trials(), CHOSEN) if fit else compare_strategies(sitting)
    out.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(found, dict):
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    tested = dict(found.measures)
    chosen = {"files": dict(read.sources), "part": part, "slice": read.cut, "per_kind": per_kind, "seed": seed}
    found.measures.update(chosen, **began)
    found.write(out)
    for table in tables(found, title=f"{len(read.lessons)} lessons, mixed probes"):
        entry.console.print(table)
    entry.console.print(tested)


main = entry.main(command)

if __name__ == "__main__":
    main()
