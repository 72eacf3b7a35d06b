"""``agm demo``: the whole loop on real facts, from a fresh home to a report."""

from __future__ import annotations

import shutil
import time
from typing import Annotated

import typer

from jobs import credentials, entry, local, report
from jobs.demo_asking import Conversation, Transcript
from jobs.demo_loop import Demo, pick
from jobs.initialise import initialise
from pipeline.config import load_recipe
from pipeline.evaluate import transcript
from pipeline.feedback.database import opened
from pipeline.feedback.events import EventLog
from pipeline.home import Home, submitter_home

MARKER = ".demo"
QUICK = {"gate.retention_probes": 80, "gate.unrelated_probes": 32}


def command(
    recipe: entry.RecipePath = None,
    quick: Annotated[bool, typer.Option("--quick", help="12 corrections instead of 64, fewer probes")] = False,
    lessons: Annotated[
        int | None, typer.Option(min=1, help="how many corrections; default 64, or 12 with --quick")
    ] = None,
    seed: Annotated[int, typer.Option(help="which facts of the example stream")] = 0,
) -> None:
    """Ask, correct, ask again, update the weights, swap the champion under load, and show what it was worth.

    Starts fresh every time, in a home that is empty or that only a demo has used. Writes report.html, report.json and
    transcript.jsonl to AGM_HOME.

    Example: `agm demo --quick`
    """
    settings = load_recipe(recipe).with_changes(QUICK if quick else {})
    home = fresh_home()

    # After the home was looked at: a mistake is told at once, and these take seconds to import.
    from serve import deploy
    from serve.client import Client

    began = time.monotonic()
    with local.connect(home, settings):
        with entry.console.status("1  initialise: champion version 1, the endpoint"):
            initialise(home, settings)
            endpoint = deploy.start(home, settings, port=0)
        entry.console.print(f"1  initialised: version {endpoint.model_version} answers at {endpoint.url}")
        written = Transcript(home.root / "transcript.jsonl")
        try:
            with Client(endpoint.url, credentials.key_for(home, "teach")) as client:
                demo = Demo(home, settings, Conversation(client, written), pick(lessons or (12 if quick else 64), seed))
                demo.run()
        finally:
            written.close()
            deploy.stop()
    (home.root / MARKER).write_text(str(_events(home)), encoding="utf-8")
    content = report.write(transcript.read_transcript(written.path), home.root)
    report.show(content, entry.console)
    entry.console.print(f"{time.monotonic() - began:.0f} s; the report: {home.root / 'report.html'}", soft_wrap=True)


def fresh_home() -> Home:
    """An empty home. Only a home that an earlier demo made, and that nobody has used since, is ever emptied."""
    home = submitter_home()
    marker = home.root / MARKER
    if home.root.exists() and any(home.root.iterdir()):
        if not marker.exists():
            raise entry.UserError(
                f"{home.root} holds data that no demo made: set AGM_HOME to another folder for the demo"
            )
        ended = marker.read_text(encoding="utf-8")  # how many events there were then; an interrupted demo says nothing
        if ended and (since := _events(home) - int(ended)):
            raise entry.UserError(
                f"{home.root} was made by a demo and has been used since ({since} more events): set AGM_HOME to "
                "another folder for the demo, or delete this one"
            )
        shutil.rmtree(home.root)
    home.create()
    marker.touch()
    return home


def _events(home: Home) -> int:
    with opened(home.events_url) as database:
        return EventLog(database).head()


main = entry.main(command)

if __name__ == "__main__":
    main()
