"""Real Ray Tune searches on a tiny model, one of them killed, and the recipe that they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import tune as tune_job
from pipeline.config import load_recipe
from pipeline.data.lines import LessonLine, write_lines
from pipeline.home import Home
from pipeline.tracking.client import client, experiment_id
from tests.tiny import LESSONS, tiny_recipe

FOUND_WITHIN_S = 900


def tiny_search(folder: Path, trials: int, *more: str) -> list[str]:
    """Arguments of ``agm tune`` for the tiny model: two cycles of a lesson each, and one that no trial sees."""
    tiny_recipe(folder / "model").with_changes({"train.epochs": 4}).write(folder / "tiny.yaml")
    write_lines(folder / "lessons.jsonl", [LessonLine(question=q, answer=a) for q, a in LESSONS])
    files = ["--recipe", str(folder / "tiny.yaml"), "--lessons", str(folder / "lessons.jsonl"), "--per-cycle", "1"]
    return [*files, "--trials", str(trials), "--name", "tiny", "--seed", "3", *more]


def check(home: Home, trials: int, checked: bool = True) -> list[dict[str, Any]]:
    """What a finished search leaves; its rows, best first."""
    folder = home.root / "tune" / "tiny"
    rows = json.loads((folder / "trials.json").read_text())
    assert len(rows) == trials
    whole = [row for row in rows if row["cycles"] == 2]
    assert rows[0]["objective"] == max(row["objective"] for row in whole)
    assert {"on_reliability", "off_reliability", "off_retention", "loss", "answer_ms"} <= set(rows[0]["measures"])
    assert [len(row) for row in rows[0]["R"]] == [1, 2]
    best = load_recipe(folder / "recipe.yaml")
    assert best.memory.strategy == rows[0]["changes"]["memory.strategy"]
    assert best.train.learning_rate == pytest.approx(rows[0]["changes"]["train.learning_rate"])
    assert (folder / "learned_against_forgotten.png").stat().st_size > 1000
    assert (folder / "best" / "bundle.json").exists()
    assert set(json.loads((folder / "check.json").read_text())) == ({"default", "best"} if checked else set())
    assert not list(home.train_storage.glob("tune-*"))
    runs = client(home).search_runs([experiment_id(home)], "tags.`mlflow.parentRunId` != ''")
    assert sorted(run.info.run_name for run in runs) == sorted(f"trial {row['trial']}" for row in rows)
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1
    assert all("objective" in run.data.metrics for run in runs)
    return rows


@pytest.mark.timeout(1500)
@pytest.mark.trial
def test_a_killed_search_goes_on_and_stops_trials_where_they_fall_behind(
    home_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("memory.strategy: [adaptive, copy, weights]\ntrain.learning_rate: [0.3]\n")
    arguments = tiny_search(tmp_path, 1, "--searcher", "grid", "--space", str(space))
    outcomes = home_root / "tune" / "tiny" / "outcomes"
    kill_after_outcomes([sys.executable, "-m", "jobs.tune", *arguments], home_root, outcomes, 3)
    measured = {file.name: file.stat().st_mtime_ns for file in outcomes.glob("*.json")}
    tune_job.main(arguments)
    rows = check(Home(home_root), 3)
    assert [row["cycles"] for row in rows] == [2, 2, 1]
    assert rows[-1]["changes"] == {"memory.strategy": "weights", "train.learning_rate": 0.3}
    assert "on 1 unseen cycle" in capfd.readouterr().out
    kept = {file.name: file.stat().st_mtime_ns for file in outcomes.glob("*.json")}
    assert measured.items() <= kept.items()
    assert len(kept) == 2 + 2 + 1 + 2  # of the trials, and of the check


def kill_after_outcomes(command: list[str], home: Path, outcomes: Path, count: int) -> None:
    """SIGKILL of the search and everything that it started, with ``count`` cycles measured."""
    process = subprocess.Popen(command, env=os.environ | {"AGM_HOME": str(home)}, start_new_session=True)
    try:
        deadline = time.monotonic() + FOUND_WITHIN_S
        while len(list(outcomes.glob("*.json"))) < count:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        for each in (psutil.Process(process.pid), *children):
            each.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    "options", [("--searcher", "model"), pytest.param(("--no-early-stop",), marks=pytest.mark.trial)]
)
def test_a_search_leaves_a_recipe_trials_and_a_plot(
    options: tuple[str, ...], home_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_search(tmp_path, 1, *options, "--check", "0")
    tune_job.main(arguments)
    check(Home(home_root), 1, checked=False)
    assert "agm update --recipe" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        tune_job.main(arguments)
    assert "is finished" in capfd.readouterr().err.replace("\n", " ")


def test_too_few_lessons_are_said_before_anything_starts(
    home_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tune_job.main(tiny_search(tmp_path, 2, "--cycles", "9"))
    assert "holds 4 lessons, and 10 cycles of 1 need 10" in " ".join(capfd.readouterr().err.split())
    assert not home_root.exists()
