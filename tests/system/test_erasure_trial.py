"""The canary through the whole loop: taught, learned by a cycle, erased, and gone from memory and from weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import local
from jobs.initialise import initialise
from pipeline.data.lines import LessonLine
from pipeline.evaluate.protocol import prompt_messages
from pipeline.feedback import lineage
from pipeline.feedback.copies import erase
from pipeline.feedback.erasure import Target, plans
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_answer, record_lesson
from pipeline.feedback.keys import Key
from pipeline.home import Home
from pipeline.memory.belief import fold
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.tracking.registry import Registry
from pipeline.train.cycle import run_cycle
from tests.tiny import LESSONS, tiny_recipe


@pytest.mark.trial
def test_what_is_erased_is_answered_neither_from_memory_nor_from_weights(
    home_root: Path, tmp_path: Path, own_cache: Path
) -> None:
    home, recipe = Home(home_root), tiny_recipe(tmp_path / "model")
    recipe = recipe.with_changes({"train.epochs": 60, "scaling.workers": 1, "gate.new_lessons_margin": 1.0})

    def by_weights(version: int) -> list[str]:
        answerer = Answerer.load(Bundle.load(registry.folder(version)))
        return [g.text for g in answerer.generate([prompt_messages(question) for question, _ in LESSONS])]

    with local.connect(home, recipe):
        log = EventLog(engine := initialise(home, recipe))
        registry = Registry(home, engine)
        untaught = by_weights(1)
        teacher = Key("tim", "teach")
        receipts = [
            record_lesson(log, LessonLine(question=q, answer=a), key=teacher, feedback_id=f"fb_{a}") for q, a in LESSONS
        ]
        gone, answer = str(receipts[0].lesson_id), LESSONS[0][1]
        first = run_cycle(home, recipe)
        assert first.verdict is not None
        assert first.verdict.promoted, first.verdict.reasons
        assert by_weights(2)[0] == answer
        said = record_answer(
            log, key=teacher, question=LESSONS[0][0], answer=answer, lessons={gone: 1.0}, model_version=2
        )
        touched = lineage.of_feedback(home, log, f"fb_{answer}")
        assert (touched.lessons, touched.versions) == ((gone,), (2,))
        assert [event.response_id for event in touched.answers] == [said.response_id]
        behind = lineage.of_answer(home, log, str(said.response_id))
        assert [version.version for version in behind.versions] == [2, 1]
        assert gone in behind.cycles[0].lessons
        assert f"lesson {gone}" in lineage.drawing(behind)

        done = erase(home, log, Target(lessons=(gone,)))
        assert (done.versions, done.cycles, done.waits_for_cycle) == ([2], [1], True)
        assert gone not in fold(log.after(0))  # from memory: at once
        second = run_cycle(home, recipe)
        assert second.version == 3
        assert second.verdict is not None
        assert second.verdict.promoted, second.verdict.reasons
        after = by_weights(3)
        assert after[0] == untaught[0] != answer
        assert after[1:] == [a for _, a in LESSONS[1:]]
        assert by_weights(2) == after  # a rollback does not bring it back
        assert plans(log, "waiting") == {}
        engine.dispose()
