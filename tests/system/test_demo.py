"""The demo for real: a fresh home, the default model, Ray, HTTP, MLflow, Delta, two DDP workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs.demo import MARKER, fresh_home
from jobs.entry import UserError
from pipeline.data.lines import LessonLine
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_lesson
from pipeline.feedback.keys import Key
from pipeline.home import Home


@pytest.mark.timeout(900)
@pytest.mark.trial
def test_the_quick_demo_closes_the_loop(tmp_path: Path, root: Path) -> None:
    home = tmp_path / "home"
    environment = {**os.environ, "AGM_HOME": str(home)}
    before = set(psutil.pids())
    done = subprocess.run(
        [sys.executable, "-m", "jobs.demo", "--quick"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    measures = json.loads((home / "report.json").read_text())["measures"]
    assert measures["corrected"]["n"] == 12
    assert measures["corrected"]["value"] >= 0.99
    assert measures["weights_learned"]["value"] >= 0.9
    assert measures["retention_kept"]["value"] >= 0.98
    assert measures["requests_during_swap"] >= 20
    assert measures["failed_requests"] == 0
    assert measures["gate"]["promoted"]
    assert (home / "report.html").stat().st_size > 10_000
    assert "ray::" not in _names(set(psutil.pids()) - before, home)

    recomputed = subprocess.run(
        [sys.executable, "-m", "jobs.report", "--from", str(home / "transcript.jsonl"), "--out", str(tmp_path / "x")],
        cwd=root, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert recomputed.returncode == 0, recomputed.stderr
    assert json.loads((tmp_path / "x" / "report.json").read_text())["measures"] == measures


def _names(pids: set[int], home: Path) -> str:
    """The command lines of those processes that belong to this home."""
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if process.environ().get("AGM_HOME") == str(home):
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return "\n".join(found)


def test_the_demo_never_empties_a_home_that_is_not_a_demo_s(tmp_path: Path, root: Path) -> None:
    (tmp_path / "events.db").write_text("precious")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.demo", "--quick"],
        cwd=root, env={**os.environ, "AGM_HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "AGM_HOME" in done.stderr
    assert (tmp_path / "events.db").read_text() == "precious"


def test_the_demo_never_empties_a_home_that_was_used_after_it(home_root: Path) -> None:
    home = Home(home_root).create()
    database = open_database(home.events_url)
    log = EventLog(database)
    record_lesson(log, LessonLine(question="Who wrote Dune?", answer="Frank Herbert"), key=Key("tim", "teach"))
    (home.root / MARKER).write_text(str(log.head()))
    record_lesson(log, LessonLine(question="Who leads NATO?", answer="Mark Rutte"), key=Key("tim", "teach"))
    with pytest.raises(UserError, match="used since .1 more events."):
        fresh_home()
    assert log.head() == 2
    (home.root / MARKER).write_text(str(log.head()))
    database.dispose()
    assert [file.name for file in fresh_home().root.glob("*") if file.is_file()] == [MARKER]
