"""``agm status``: where this home stands."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table
from sqlalchemy import Engine, select

from jobs import entry
from jobs.initialise import existing
from pipeline.feedback.events import EventLog
from pipeline.feedback.sealer import sealed_seq
from pipeline.feedback.tables import verdicts
from pipeline.home import Home, submitter_home
from pipeline.tracking import promotions

SHOWN_VERDICTS = 5


def status(home: Home, database: Engine) -> dict[str, Any]:
    """Champion and its predecessor, how far the log and its Parquet copy go, and the newest verdicts."""
    line = promotions.line(promotions.record(database))
    return {
        "home": str(home.root),
        "champion": line[-1] if line else None,
        "previous": line[-2] if len(line) > 1 else None,
        "events": EventLog(database).head(),
        "sealed": sealed_seq(home.feedback_table),
        "verdicts": _verdicts(database),
    }


def command(as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False) -> None:
    """Champion, events, how many of them are in Parquet, and the gate's last verdicts.

    Example: `agm status --json`
    """
    home = submitter_home()
    found = status(home, existing(home))
    if as_json:
        entry.console.print_json(json.dumps(found))
    else:
        _show(found)


def _verdicts(database: Engine) -> list[dict[str, Any]]:
    query = select(verdicts).order_by(verdicts.c.id.desc()).limit(SHOWN_VERDICTS)
    with database.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return [{**{name: row[name] for name in ("cycle", "version", "promoted", "time")}, **_reasons(row)} for row in rows]


def _reasons(row: Any) -> dict[str, Any]:
    return {"reasons": list(row["verdict"].get("reasons", ()))}


def _show(found: dict[str, Any]) -> None:
    champion = "none yet" if found["champion"] is None else f"version {found['champion']}"
    before = f" (before: version {found['previous']})" if found["previous"] else ""
    entry.console.print(f"home      {found['home']}", highlight=False, markup=False, soft_wrap=True)
    entry.console.print(f"champion  {champion}{before}", highlight=False)
    entry.console.print(f"events    {found['events']}, of them {found['sealed']} in Parquet", highlight=False)
    table = Table("cycle", "version", "verdict", "time", "reasons")
    for verdict in found["verdicts"]:
        word = "[green]promoted[/green]" if verdict["promoted"] else "[red]refused[/red]"
        table.add_row(
            *(str(verdict[n]) for n in ("cycle", "version")), word, verdict["time"], "\n".join(verdict["reasons"])
        )
    if found["verdicts"]:
        entry.console.print(table)


main = entry.main(command)

if __name__ == "__main__":
    main()
