"""``agm erase``: what somebody said, one lesson, or everything that mentions somebody; every copy of it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs import entry
from jobs.initialise import existing
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import EventLog
from pipeline.home import submitter_home


def command(
    subject: Annotated[
        list[str] | None, typer.Option(help="everything that mentions this text, as whole words")
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="everything that this user or key has said")] = None,
    lesson: Annotated[list[str] | None, typer.Option(help="a lesson's id: les_...")] = None,
    tenant: Annotated[str, typer.Option(help="whose data")] = "default",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Erase feedback from the event log, the Parquet table with its history, memory, cycles, models and transcripts.

    It cannot be undone. Without any option it finishes erasures that were interrupted. The report names the model
    versions that had learned what is erased; the next `agm update` makes one without it, whether there is anything new
    to learn or not.

    Example: `agm erase --subject 'Jane Doe' --source jane@example.com`
    """
    from pipeline.feedback import copies

    home = submitter_home()
    log = EventLog(existing(home))
    if subject or source or lesson:
        target = Target(tenant, tuple(source or ()), tuple(lesson or ()), tuple(subject or ()))
        if not yes:
            typer.confirm(f"Erase {target} for good?", abort=True)
        try:
            done = [copies.erase(home, log, target)]
        except LookupError as error:
            raise entry.UserError(str(error)) from None
    else:
        done = copies.resume(home, log)
    if as_json:
        entry.console.print_json(json.dumps([vars(erased) for erased in done]))
        return
    for erased in done:
        _show(erased)
    if not done:
        entry.console.print("no erasure was interrupted; name what to erase, see agm erase --help")
    for limit in copies.LIMITS if done else ():
        entry.console.print(f"not reached: {limit}", highlight=False, markup=False)


def _show(erased: object) -> None:
    for name, value in vars(erased).items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        entry.console.print(f"{name:16s} {shown}", highlight=False, markup=False, soft_wrap=True)


main = entry.main(command)

if __name__ == "__main__":
    main()
