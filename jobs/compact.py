"""``agm compact``: retention, compaction and vacuum of the feedback table."""

from __future__ import annotations

from jobs import entry
from jobs.initialise import existing
from pipeline.config import load_recipe
from pipeline.feedback.compaction import compact
from pipeline.feedback.events import EventLog
from pipeline.home import submitter_home


def command(recipe: entry.RecipePath = None) -> None:
    """Merge small Parquet files, drop answers that are kept no longer, and delete old versions of the table.

    Safe beside a running server; run it once a day or so. The recipe's `feedback` says how long things are kept.

    Example: `agm compact --recipe examples/laptop.yaml`
    """
    home = submitter_home()
    done = compact(home.feedback_table, EventLog(existing(home)), load_recipe(recipe).feedback)
    files = f"{done.files_before} -> {done.files_after} files, {done.vacuumed} old ones deleted"
    entry.console.print(f"{files}, {done.expired} answers expired", highlight=False)


main = entry.main(command)

if __name__ == "__main__":
    main()
