"""``agm canary``: a share of the sessions on another version."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs import entry
from jobs.initialise import existing
from pipeline.home import submitter_home


def command(
    version: Annotated[int | None, typer.Argument(help="a registered version; none: end the canary")] = None,
    share: Annotated[float, typer.Option(min=0.001, max=1.0, help="of the sessions; each stays where it is")] = 0.1,
) -> None:
    """Answer a share of the sessions with another version, or end that. Running replicas follow within moments;
    `/metrics` counts answers and ratings by version.

    Example: `agm canary 3 --share 0.1`
    """
    from pipeline.tracking.registry import Registry
    from serve.canary import Canary, write_canary

    home = submitter_home()
    if version is None:
        write_canary(home, None)
        entry.console.print("no canary")
        return
    Registry(home, existing(home)).folder(version)  # a version without files is refused here
    write_canary(home, Canary(version=version, share=share))
    entry.console.print(f"version {version} answers {share:.0%} of the sessions", highlight=False)


main = entry.main(command)

if __name__ == "__main__":
    main()
