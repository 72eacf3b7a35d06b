"""``agm keys``: who may ask, teach and administer."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from sqlalchemy import select

from jobs import entry
from jobs.initialise import existing
from pipeline.feedback.keys import KeyRing
from pipeline.feedback.records import Role
from pipeline.feedback.tables import api_keys
from pipeline.home import submitter_home


def command(
    name: Annotated[str | None, typer.Argument(help="whom a new key is for; none: list the keys")] = None,
    role: Annotated[Role, typer.Option(help="ask < teach < admin")] = "ask",
    tenant: Annotated[str, typer.Option(help="whose lessons the key sees")] = "default",
) -> None:
    """List the endpoint's keys, or create one. A new key is printed once; the database keeps its digest.

    Example: `agm keys alice --role teach`
    """
    database = existing(submitter_home())
    if name is not None:
        entry.console.print(KeyRing(database).create(name, role, tenant), markup=False, highlight=False, soft_wrap=True)
        return
    columns = (api_keys.c.name, api_keys.c.role, api_keys.c.tenant, api_keys.c.created)
    table = Table(*(column.name for column in columns))
    with database.connect() as connection:
        for row in connection.execute(select(*columns).order_by(api_keys.c.created)):
            table.add_row(*map(str, row))
    entry.console.print(table)


main = entry.main(command)

if __name__ == "__main__":
    main()
