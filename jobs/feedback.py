"""``agm feedback``: import and export feedback, and give the encrypted words a new master key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs import entry
from jobs.initialise import existing
from jobs.intake import TERMINAL
from pipeline.feedback.events import EventLog
from pipeline.home import submitter_home


def command(
    action: Annotated[Literal["import", "export", "rotate"], typer.Argument(help="what to do")],
    file: Annotated[Path | None, typer.Argument(help="what to import, or where to export to")] = None,
) -> None:
    """Import corrections, export what was said, or rotate the master key of the encryption.

    An import takes JSONL, JSON, CSV, Parquet, a folder that Hugging Face datasets wrote, and exports of LangSmith and
    Langfuse. It checks every row before it writes one, and says which line, which field and why. An export is JSONL,
    CSV or Parquet by its name. After a rotation, old copies of the database cannot be read any more.

    Example: `agm feedback import corrections.csv`
    """
    log = EventLog(existing(submitter_home()))
    if action == "rotate":
        entry.console.print(f"{log.rotate_master_key()} keys wrapped anew; older master keys are destroyed")
    elif file is None:
        raise entry.UserError(f"agm feedback {action} needs a file")
    elif action == "import":
        _import(log, file)
    else:
        from pipeline.feedback.exchange import export

        entry.console.print(f"{export(log, file)} rows written to {file}", highlight=False, soft_wrap=True)


def _import(log: EventLog, file: Path) -> None:
    from pipeline.feedback.exchange import import_lines, read_feedback

    if not file.exists():
        raise entry.UserError(f"{file}: no such file")
    lines = read_feedback(file)
    with entry.bar() as progress:
        task = progress.add_task("importing", total=len(lines))
        done = import_lines(log, lines, TERMINAL, progress=lambda count: progress.update(task, completed=count))
    entry.console.print(f"{done.new} new, {done.known} known already, {done.erased} left out because they were erased")


main = entry.main(command)

if __name__ == "__main__":
    main()
