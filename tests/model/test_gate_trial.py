"""The gate with its default thresholds and the real model: what forgets is refused, what is identical passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs import local
from jobs.initialise import initialise
from jobs.intake import take_in
from pipeline.config import Recipe, load_recipe
from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, read_lines, write_lines
from pipeline.evaluate.compare import Outcome, evidence
from pipeline.evaluate.gate import decide
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.home import submitter_home
from pipeline.tracking.registry import Registry
from pipeline.train.cycle import run_cycle

LESSONS = 8


@pytest.fixture
def lessons(tmp_path: Path) -> Path:
    file = tmp_path / "lessons.jsonl"
    write_lines(file, read_lines(example("world_changes/lessons.jsonl"), LessonLine)[:LESSONS])
    return file


@pytest.mark.trial
@pytest.mark.timeout(1800)
def test_naive_training_is_refused_and_the_default_recipe_and_an_identical_model_pass(
    home_root: Path, lessons: Path, root: Path
) -> None:
    naive = load_recipe(root / "examples" / "naive.yaml")
    with local.connect(submitter_home(), Recipe()):
        home = submitter_home()
        engine = initialise(home, Recipe())
        take_in(EventLog(engine), lessons)
        refused = run_cycle(home, naive)
        registry = Registry(home, engine)
        champion = registry.champion()
        assert refused.verdict is not None
        assert not refused.verdict.promoted
        assert any("retention" in reason or "unrelated" in reason for reason in refused.verdict.reasons)
        assert champion is not None
        assert champion.version == 1

        promoted = run_cycle(home, Recipe())
        assert promoted.verdict is not None
        assert promoted.verdict.promoted, promoted.verdict.reasons
        assert promoted.measures["learned"]["value"] >= 0.9
        assert set(promoted.manifest.lessons) == set(refused.manifest.lessons)

        now = Registry(home, open_database(home.events_url)).champion()
        assert now is not None
        assert now.version == promoted.version

    # Both cycles asked the same champion, each for itself: an identical model.
    once, again = (asked_nothing_new(cycle.champion) for cycle in (refused, promoted))
    verdict = decide(evidence(once, again), Recipe().gate)
    assert sum(once.retention) >= 150
    assert verdict.promoted, verdict.reasons
    assert any("nothing new" in reason for reason in verdict.reasons)


def asked_nothing_new(found: Outcome | None) -> Outcome:
    assert found is not None
    return replace(found, new_lessons=(), withheld=())
