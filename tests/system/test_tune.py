"""A real Ray Tune search on a tiny model, and what ``update`` does with its recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import tune as tune_job
from pipeline.config import Recipe, ScalingSettings, load_recipe
from pipeline.data.lines import LessonLine, write_lines
from pipeline.evaluate.metrics import Interval
from pipeline.home import Home
from pipeline.tracking.client import client, experiment_id
from pipeline.train.search import Search, SearchError, concurrent_trials, objective
from tests.tiny import LESSONS, tiny_recipe


def tiny_search(folder: Path, trials: int) -> list[str]:
    """Arguments of ``agm tune`` for the tiny model and four lessons."""
    tiny_recipe(folder / "model").with_changes({"train.epochs": 4}).write(folder / "tiny.yaml")
    write_lines(folder / "lessons.jsonl", [LessonLine(question=q, answer=a) for q, a in LESSONS])
    files = ["--recipe", str(folder / "tiny.yaml"), "--lessons", str(folder / "lessons.jsonl")]
    return [*files, "--trials", str(trials), "--name", "tiny", "--seed", "3"]


def check(home: Home, trials: int) -> None:
    folder = home.root / "tune" / "tiny"
    rows = json.loads((folder / "trials.json").read_text())
    assert len(rows) == trials
    assert rows[0]["objective"] == max(row["objective"] for row in rows)
    assert {"on_reliability", "off_reliability", "off_retention", "loss"} <= set(rows[0]["measures"])
    best = load_recipe(folder / "recipe.yaml")
    assert best.memory.strategy == rows[0]["changes"]["memory.strategy"]
    assert best.train.learning_rate == rows[0]["changes"]["train.learning_rate"]
    assert len({row["changes"]["train.learning_rate"] for row in rows}) == trials
    assert (folder / "learned_against_kept.png").stat().st_size > 1000
    runs = client(home).search_runs([experiment_id(home)], "tags.`mlflow.parentRunId` != ''")
    assert sorted(run.info.run_name for run in runs) == sorted(f"trial {row['trial']}" for row in rows)
    assert all("objective" in run.data.metrics for run in runs)


@pytest.mark.trial
def test_eight_trials(home_root: Path, tmp_path: Path) -> None:
    tune_job.main(tiny_search(tmp_path, 8))
    check(Home(home_root), 8)


def test_a_search_leaves_a_recipe_trials_and_a_plot(
    home_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_search(tmp_path, 2)
    tune_job.main(arguments)
    check(Home(home_root), 2)
    assert "agm update --recipe" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        tune_job.main(arguments)
    assert "is finished" in capfd.readouterr().err.replace("\n", " ")


def test_the_objective_is_the_formula_in_its_docstring() -> None:
    def figures(**values: float) -> dict[str, Interval]:
        return {name: Interval(value, 0, 1, 10) for name, value in values.items()}

    on, off = figures(reliability=1.0, generality=0.8, locality=0.6), figures(reliability=0.5, retention=0.9)
    found = objective(on, off)
    assert found["objective"] == pytest.approx((0.8 + 0.7) / 2)
    assert found["learned"] == pytest.approx((1.0 + 0.8 + 0.5) / 3)
    assert found["kept"] == pytest.approx(0.75)
    without = objective(figures(reliability=1.0), off)
    assert without["objective"] == pytest.approx((1.0 + 0.7) / 2)


def test_trials_never_take_the_room_that_their_workers_need() -> None:
    two_cores = {"CPU": 2.0}
    assert concurrent_trials(ScalingSettings(), two_cores) == 1
    assert concurrent_trials(ScalingSettings(workers=1, cpus_per_worker=0.3), two_cores) == 5
    assert concurrent_trials(ScalingSettings(workers=4, cpus_per_worker=1), two_cores) == 1
    gpus = ScalingSettings(workers=2, use_gpu=True, cpus_per_worker=1)
    assert concurrent_trials(gpus, {"CPU": 64.0, "GPU": 8.0}) == 4


def test_another_search_cannot_take_the_name(tmp_path: Path) -> None:
    from pipeline.train.search import _claim

    lines = tuple(LessonLine(question=q, answer=a) for q, a in LESSONS)
    wanted = Search("mine", Recipe(), tmp_path, lines, (), ())
    _claim(tmp_path / "mine", wanted)
    _claim(tmp_path / "mine", wanted)
    with pytest.raises(SearchError, match="other lessons, recipe or options"):
        _claim(tmp_path / "mine", Search("mine", Recipe(), tmp_path, lines[:2], (), ()))
