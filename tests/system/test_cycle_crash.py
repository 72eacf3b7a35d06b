"""A cycle that crashes after its work is done: run again, it is the same range, the same manifest and one version."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import local
from jobs.initialise import initialise
from pipeline.data.lines import LessonLine
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_lesson
from pipeline.feedback.keys import Key
from pipeline.home import Home
from pipeline.tracking import promotions
from pipeline.tracking.registry import Registry
from pipeline.train.cycle import MANIFEST, VERDICT, run_cycle
from tests.tiny import LESSONS, tiny_recipe


@pytest.mark.trial
def test_a_crashed_cycle_makes_one_version(home_root: Path, tmp_path: Path) -> None:
    home, recipe = Home(home_root), tiny_recipe(tmp_path / "model")
    recipe = recipe.with_changes({"train.epochs": 30, "scaling.workers": 1, "gate.new_lessons_margin": 1.0})

    with local.connect(home, recipe):
        log = EventLog(engine := initialise(home, recipe))
        registry = Registry(home, engine)
        for question, answer in LESSONS:
            record_lesson(log, LessonLine(question=question, answer=answer), key=Key("tim", "teach"))
        first = run_cycle(home, recipe)
        manifest = (first.folder / MANIFEST).read_bytes()
        assert registry.versions() == [1, 2]

        # Killed after the decision was committed and before it was written down.
        (first.folder / VERDICT).unlink()
        record_lesson(log, LessonLine(question="Who came later?", answer="y"), key=Key("tim", "teach"))
        again = run_cycle(home, recipe)
        assert (again.cycle, again.version, again.verdict) == (1, 2, first.verdict)
        assert (again.folder / MANIFEST).read_bytes() == manifest
        assert (registry.versions(), len(promotions.record(engine))) == ([1, 2], 2)

        # Killed after the version was registered and before it was decided.
        (first.folder / VERDICT).unlink()
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM verdicts WHERE version = 2")
            connection.exec_driver_sql("DELETE FROM promotions WHERE version = 2")
        registry.repair_aliases()
        again = run_cycle(home, recipe)
        assert (again.cycle, again.version) == (1, 2)
        assert (again.folder / MANIFEST).read_bytes() == manifest
        assert registry.versions() == [1, 2]
        assert [row.version for row in promotions.record(engine)] == [1, 2]
        engine.dispose()
