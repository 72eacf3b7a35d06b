"""``agm lessons``: what the endpoint's memory holds, why it believes it, and how to take it back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from jobs import credentials, entry
from pipeline.home import submitter_home
from serve.client import Client

Action = Literal["list", "show", "explain", "retract", "expire", "reinforce"]


def command(
    action: Annotated[Action, typer.Argument(help="reinforce: say that the lesson is right")] = "list",
    lesson_id: Annotated[str | None, typer.Argument(help="as 'agm lessons list' shows it")] = None,
    search: Annotated[str, typer.Option(help="list: in question, phrasings and answer")] = "",
    offset: Annotated[int, typer.Option(min=0, help="list: how many to pass over")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="list: how many to show")] = 20,
    at: Annotated[str, typer.Option(help="expire: a date, a time, now, or never")] = "now",
    user: Annotated[str | None, typer.Option(help="whose own lessons count too")] = None,
    session: Annotated[str | None, typer.Option(help="whose lessons count too")] = None,
    url: entry.Url = entry.DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="the endpoint's whole reply")] = False,
) -> None:
    """List the lessons (the last changed first), show or explain one, retract, expire or reinforce it.

    The key is AGM_KEY, else this home's own.

    Example: `agm lessons list --search capital`, `agm lessons explain les_4f2a`, or
    `agm lessons expire les_4f2a --at 2027-01-31`
    """
    if action != "list" and lesson_id is None:
        raise entry.UserError(f"agm lessons {action}: which lesson? 'agm lessons list' shows their ids")
    who = {"user": user, "session": session}
    with Client(url, credentials.key_for(submitter_home(), "teach")) as client:
        calls: dict[str, Callable[[str], Any]] = {
            "list": lambda _: client.lessons(search, offset, limit, **who),
            **dict.fromkeys(("show", "explain"), lambda name: client.explain(name, **who)),
            "retract": client.retract,
            "expire": lambda name: client.expire(name, None if at == "never" else at, **who),
            "reinforce": lambda name: client.reinforce(name, 1.0, **who),
        }
        reply = calls[action](lesson_id or "")
    if as_json:
        entry.console.print_json(json.dumps(reply))
    elif action == "list":
        _table(reply, "lesson_id", "question", "answer", "belief", "scope", "expires")
    elif action in ("show", "explain"):
        entry.console.print_json(json.dumps({name: value for name, value in reply.items() if name != "evidence"}))
        if action == "explain":
            _table(reply["evidence"], "seq", "source", "answer", "value", "trust", "alpha", "beliefs")
    else:
        entry.console.print(f"done ({lesson_id}, lesson_seq {reply['lesson_seq']})", highlight=False)


def _table(rows: list[dict[str, Any]], *columns: str) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(escape(_text(row[column])) for column in columns))
    entry.console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{answer} {belief:.3f}" for answer, belief in value.items())
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


main = entry.main(command)

if __name__ == "__main__":
    main()
