"""Erasure in the model versions: real bundles in a real MLflow registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import Recipe
from pipeline.data.lines import LessonLine
from pipeline.feedback import erasure
from pipeline.feedback.copies import erase, resume
from pipeline.feedback.database import open_database
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_lesson, retract_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.manifest import build_manifest
from pipeline.feedback.sealer import Sealer
from pipeline.home import Home
from pipeline.model.bundle import Bundle
from pipeline.model.memory_layer import MemoryState
from pipeline.tracking.registry import Registry

TIM, EVA = Key("tim", "teach"), Key("eva", "teach")


@pytest.fixture
def home(home_root: Path, own_cache: Path) -> Home:
    return Home(home_root).create()


@pytest.fixture
def log(home: Home) -> Iterator[EventLog]:
    engine = open_database(home.events_url)
    yield EventLog(engine)
    engine.dispose()


def teach(log: EventLog, question: str, answer: str, key: Key = TIM) -> str:
    return str(record_lesson(log, LessonLine(question=question, answer=answer), key=key).lesson_id)


def layer(*slots: str) -> MemoryState:
    keys = torch.eye(len(slots))
    return MemoryState(
        slots=slots, key_layer=0, value_layers=(1,), top_k=1, temperature=1.0,
        mean=torch.zeros(len(slots)), whiten=torch.eye(len(slots)), keys=keys, key_slots=torch.arange(len(slots)),
        thresholds=torch.zeros(len(slots)), values=torch.ones(1, len(slots), 4), reach=torch.ones(len(slots)),
    )  # fmt: skip


def register(home: Home, log: EventLog, bundle: Bundle) -> int:
    registry, folder = Registry(home, log.engine), home.root / "made"
    registry.initialise()
    bundle.save(folder)
    version = registry.register(folder, cycle=bundle.cycle, metrics={}, params={}, tags={})
    registry.promote(version)
    return version


def finished_cycle(home: Home, log: EventLog) -> None:
    Sealer(log, home.feedback_table).drain()
    made = build_manifest(home.feedback_table, log, cycle=1, from_seq=0, to_seq=log.head())
    folder = home.cycles / "000001"
    folder.mkdir()
    made.save(folder / "manifest.json")
    (folder / "verdict.json").write_text("null")


def slots(home: Home, log: EventLog, version: int) -> tuple[str, ...]:
    memory = Bundle.load(Registry(home, log.engine).folder(version)).memory
    assert memory is not None
    return memory.slots


def test_what_was_taken_back_or_replaced_before_goes_from_the_models_too(home: Home, log: EventLog) -> None:
    retracted, replaced = teach(log, "Where is the gold?", "Zanzibar"), teach(log, "Who is king?", "Ann", EVA)
    kept = teach(log, "Where is the silver?", "Peru")
    for answer in ("Bob", "Cem"):  # twice, so that nothing shows of what Eva said
        teach(log, "Who is king?", answer)
    finished_cycle(home, log)
    version = register(home, log, Bundle(Recipe(), "base", memory=layer(retracted, replaced, kept)))
    retract_lesson(log, retracted, key=TIM)
    done = erase(home, log, Target(lessons=(retracted,)))
    assert (done.lessons, done.versions, done.waits_for_cycle) == ((retracted,), [version], True)
    assert slots(home, log, version) == (replaced, kept)
    assert "Ann" in (home.cycles / "000001" / "manifest.json").read_text()  # why its answer was not trained
    assert erase(home, log, Target(sources=("eva",))).versions == [version]
    assert slots(home, log, version) == (kept,)
    assert "Ann" not in (home.cycles / "000001" / "manifest.json").read_text()


def test_versions_that_descend_from_one_that_learned_it_are_named(home: Home, log: EventLog) -> None:
    gone = teach(log, "Where is the gold?", "Zanzibar")
    finished_cycle(home, log)
    plain = Bundle(Recipe(), "base", tensors={"w": torch.ones(2)})
    first = register(home, log, plain)
    learned = register(home, log, replace(plain, cycle=1, parent=first))
    heir = register(home, log, replace(plain, cycle=2, parent=learned))
    other = register(home, log, replace(plain, cycle=3, parent=first))
    done = erase(home, log, Target(lessons=(gone,)))
    assert (done.cycles, done.beyond) == ([1], [learned, heir])
    assert other not in done.beyond


def test_an_erasure_that_was_interrupted_after_the_models_still_waits_for_a_cycle(home: Home, log: EventLog) -> None:
    gone = teach(log, "Where is the gold?", "Zanzibar")
    finished_cycle(home, log)
    register(home, log, Bundle(Recipe(), "base", memory=layer(gone)))
    done = erase(home, log, Target(lessons=(gone,)))
    erasure.set_state(log, [done.erasure_id], "erasing")  # as if the process had died before it wrote that down
    (again,) = resume(home, log)
    assert again.waits_for_cycle
    assert [*erasure.plans(log, "waiting")] == [done.erasure_id]
