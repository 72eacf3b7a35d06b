"""``agm rollback``: the champion before this one serves again."""

from __future__ import annotations

from jobs import entry
from jobs.initialise import existing
from pipeline.home import submitter_home
from pipeline.tracking.promotions import champion_version


def command() -> None:
    """Return to the champion before this one; running replicas follow within moments. Lessons are not touched.

    Example: `agm rollback`
    """
    from pipeline.tracking.registry import Registry

    home = submitter_home()
    database = existing(home)
    before = champion_version(database)
    version = Registry(home, database).rollback()
    entry.console.print(f"champion: version {version} (was version {before[1] if before else '?'})", highlight=False)


main = entry.main(command)

if __name__ == "__main__":
    main()
