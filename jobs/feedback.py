"""``agm feedback``: import, export and review feedback, and give the encrypted words a new master key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from rich.markup import escape
from rich.table import Table

from jobs import entry
from jobs.initialise import existing
from jobs.intake import TERMINAL, redacting_log
from pipeline.config import load_recipe
from pipeline.feedback.events import EventLog
from pipeline.feedback.keys import Key
from pipeline.home import submitter_home

Action = Literal["import", "export", "review", "rotate"]
Review = Literal["list", "accept", "reject"]


def command(
    action: Annotated[Action, typer.Argument(help="what to do")],
    names: Annotated[
        list[str] | None, typer.Argument(help="a file; or: review list, review accept ID..., review reject ID...")
    ] = None,
    tenant: Annotated[str, typer.Option(help="review: whose feedback")] = "default",
    everything: Annotated[bool, typer.Option("--all", help="review list: what was decided, too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="review list: for programs")] = False,
    recipe: entry.RecipePath = None,
) -> None:
    """Import corrections, export what was said, review what is held back, or rotate the encryption's master key.

    An import takes JSONL, JSON, CSV, Parquet, a folder that Hugging Face datasets wrote, and exports of LangSmith and
    Langfuse. It checks every row before it writes one, says which line, which field and why, and redacts what the
    recipe's `feedback` names. An export is JSONL, CSV or Parquet by its name. Curation holds back what looks like junk
    or a flood (recipe: `feedback.curation`); a review accepts or rejects it, once. After a rotation, old copies of the
    database cannot be read any more.

    Example: `agm feedback import corrections.csv`, or `agm feedback review accept fb_1f0c`
    """
    log, given = redacting_log(existing(submitter_home()), load_recipe(recipe)), names or []
    if action == "rotate":
        entry.console.print(f"{log.rotate_master_key()} keys wrapped anew; older master keys are destroyed")
    elif action == "review":
        _review(log, tenant, given or ["list"], everything, as_json)
    elif len(given) != 1:
        raise entry.UserError(f"agm feedback {action} needs a file")
    elif action == "import":
        _import(log, Path(given[0]))
    else:
        from pipeline.feedback.exchange import export

        rows = export(log, Path(given[0]), tenant)
        entry.console.print(f"{rows} rows written to {given[0]}", highlight=False, soft_wrap=True)


def _import(log: EventLog, file: Path) -> None:
    from pipeline.feedback.exchange import import_lines, read_feedback

    if not file.exists():
        raise entry.UserError(f"{file}: no such file")
    lines = read_feedback(file)
    with entry.bar() as progress:
        task = progress.add_task("importing", total=len(lines))
        done = import_lines(log, lines, TERMINAL, progress=lambda count: progress.update(task, completed=count))
    entry.console.print(f"{done.new} new, {done.known} known already, {done.erased} left out because they were erased")


def _review(log: EventLog, tenant: str, words: list[str], everything: bool, as_json: bool) -> None:
    from pipeline.feedback.curation import held, review

    what, *ids = words
    if what not in get_args(Review) or (what == "list") != (not ids):
        raise entry.UserError("agm feedback review: write list, accept ID..., or reject ID...")
    if what == "list":
        found = [vars(each) for each in held(log, tenant, everything=everything)]
        if as_json:
            entry.console.print_json(json.dumps(found))
        else:
            entry.console.print(_table(found))
        return
    for feedback_id in ids:
        reviewer = Key(TERMINAL.name, TERMINAL.role, tenant)
        decision = review(log, feedback_id, "accept" if what == "accept" else "reject", reviewer)
        kept = "" if decision == what else " (decided before, and a decision stays)"
        entry.console.print(f"{feedback_id}: {decision}ed{kept}", highlight=False)


def _table(found: list[dict[str, object]]) -> Table:
    columns = ("feedback_id", "source", "question", "said", "reasons", "decision")
    table = Table(*columns, title=f"{len(found)} held back")
    for row in found:
        row["reasons"] = "; ".join(map(str, row["reasons"]))  # type: ignore[call-overload]
        table.add_row(*(escape(str(row[column] or "")) for column in columns))
    return table


main = entry.main(command)

if __name__ == "__main__":
    main()
