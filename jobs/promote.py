"""``agm promote``: a registered version becomes the champion."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs import entry
from jobs.initialise import existing
from pipeline.home import submitter_home
from pipeline.tracking.promotions import champion_version


def command(
    version: Annotated[int, typer.Argument(help="a registered version, such as agm pretrain --register makes")],
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="although no gate has passed it: nobody has shown what it forgets")
    ] = False,
) -> None:
    """Make a registered version the champion; running replicas follow within moments, and `agm rollback` returns.

    Cycles promote what their gate passes by themselves. This is for versions that no cycle made, and for the decision
    to overrule a gate. `agm canary VERSION` tries one on a share of the sessions first.

    Example: `agm promote 4 --by-hand`
    """
    from pipeline.tracking.registry import Registry

    home = submitter_home()
    database = existing(home)
    registry, before = Registry(home, database), champion_version(database)
    if before is not None and before[1] == version:
        raise entry.UserError(f"version {version} is the champion already")
    verdict = registry.verdict(version)
    passed = verdict if verdict is not None and verdict.promoted else None
    if passed is None and not by_hand:
        why = "no gate has judged it" if verdict is None else f"the gate refused it: {'; '.join(verdict.reasons)}"
        raise entry.UserError(f"version {version}: {why}. Add --by-hand to promote it all the same")
    registry.promote(version, passed)
    entry.console.print(f"champion: version {version} (was version {before[1] if before else '?'})", highlight=False)


main = entry.main(command)

if __name__ == "__main__":
    main()
