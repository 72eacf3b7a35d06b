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
    revoke: Annotated[bool, typer.Option("--revoke", help="take back the keys of that name in the tenant")] = False,
) -> None:
    """List the endpoint's keys, create one, or revoke. A new key is printed once; the database keeps its digest.

    A running endpoint refuses a revoked key within five seconds.

    Example: `agm keys alice --role teach`, `agm keys alice --revoke`
    """
    database = existing(submitter_home())
    if revoke:
        gone = KeyRing(database).revoke(name, tenant) if name else 0
        if not gone:
            raise entry.UserError(f"no key is called {name!r} in tenant {tenant!r}: 'agm keys' lists them")
        entry.console.print(f"revoked {gone} key{'s' if gone > 1 else ''} of {name}", markup=False, highlight=False)
        return
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
