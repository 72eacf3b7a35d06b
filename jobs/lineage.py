"""``agm lineage``: from an answer to the feedback behind it, and from a feedback to everything that it touched."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.tree import Tree

from jobs import entry
from jobs.initialise import existing
from pipeline.feedback.events import EventLog
from pipeline.home import submitter_home


def command(
    name: Annotated[str, typer.Argument(help="a response id (resp_...) or a feedback id")],
    tenant: Annotated[str, typer.Option(help="whose data")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    mermaid: Annotated[bool, typer.Option(help="a drawing: a Mermaid flowchart")] = False,
) -> None:
    """What stands behind an answer, or what a feedback has touched: lessons, cycles, model versions, answers.

    Example: `agm lineage resp_1f0c --mermaid`
    """
    from pipeline.feedback import lineage

    home = submitter_home()
    log = EventLog(existing(home))
    find = lineage.of_answer if log.response(name) else lineage.of_feedback
    found = find(home, log, name, tenant)
    if mermaid:
        entry.console.print(lineage.drawing(found), markup=False, highlight=False, soft_wrap=True)
    elif as_json:
        entry.console.print_json(json.dumps(asdict(found)))
    else:
        entry.console.print(_tree(name, asdict(found)))


def _tree(name: str, value: Any) -> Tree:
    tree = Tree(name, highlight=False)
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "recipe":
            continue
        if isinstance(part, dict | list | tuple) and part:
            tree.add(_tree(str(key), part))
        elif part not in (None, "", (), [], {}):
            tree.add(f"{key}: {part}", highlight=False)
    return tree


main = entry.main(command)

if __name__ == "__main__":
    main()
