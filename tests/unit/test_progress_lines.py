"""Progress of long work where no terminal draws a bar."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jobs import entry


def told(monkeypatch: pytest.MonkeyPatch, every: float) -> list[str]:
    """What a job's log holds after three steps."""
    file = io.StringIO()
    monkeypatch.setattr(entry, "console", Console(file=file))
    monkeypatch.setattr(entry, "LINE_EVERY_S", every)
    with entry.bar() as progress:
        task = progress.add_task("training", total=3)
        progress.update(task, completed=1)
        progress.update(task, description="asking", completed=2)
        progress.advance(task)
        before_the_end = file.getvalue()
    return [line.split(",")[0] for line in before_the_end.splitlines()]


def test_a_log_says_what_is_being_done_and_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, every=0) == ["training: 1/3", "asking: 2/3", "asking: 3/3"]


def test_a_log_is_not_flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, every=60) == ["training: 1/3"]
