"""What a cycle replays: prompts that ship with the package, questions that people asked, lessons of earlier cycles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.config import Recipe, TrainSettings
from pipeline.data.examples import example
from pipeline.data.lines import ProbeLine, read_lines
from pipeline.feedback.events import EventLog
from pipeline.feedback.manifest import Manifest, manifests
from pipeline.feedback.records import Event
from pipeline.memory.strategy import EVEN
from pipeline.memory.types import Viewer
from pipeline.model.bundle import Bundle
from pipeline.train.history import forgetting_events, trained_in
from pipeline.train.sampling import drawn


def shipped_prompts() -> tuple[str, ...]:
    return tuple(line.question for line in read_lines(example("replay/prompts.jsonl"), ProbeLine))


def served_prompts(
    log: EventLog, history: Sequence[Event], manifest: Manifest, recipe: Recipe, champion: Bundle
) -> dict[int, str]:
    """The manifest's served questions that no lesson answers in other words either, by their rows.

    What the lesson memory would answer today is meant to change: to replay it would hold the weights back.
    """
    if not manifest.served:
        return {}
    from pipeline.feedback.vectors import apply_kept
    from pipeline.memory.router import load_router
    from pipeline.memory.store import LessonMemory
    from pipeline.model.encoder import load_encoder

    asked = [event for event in history if event.seq in {*manifest.served}]
    memory = LessonMemory(load_encoder(recipe.model.encoder), load_router(champion.router), recipe.memory)
    apply_kept(log, memory, history)
    readings = memory.read([event.body["question"] for event in asked], [Viewer(event.tenant) for event in asked])
    return {event.seq: event.body["question"] for event, read in zip(asked, readings, strict=True) if read.gate < EVEN}


Weights = Mapping[str, float]  # of lessons, by their ids


def uniform(earlier: Sequence[str], _cycles: Path) -> Weights:
    """Each alike: pi = k / n."""
    return dict.fromkeys(earlier, 1.0)


def balanced(earlier: Sequence[str], cycles: Path) -> Weights:
    """Each cycle alike, however many lessons it had: pi = min(1, c / n_cycle)."""
    cycle = trained_in(manifests(cycles))
    sizes = Counter(cycle.get(lesson, 0) for lesson in earlier)
    return {lesson: 1 / sizes[cycle.get(lesson, 0)] for lesson in earlier}


def forgetting(earlier: Sequence[str], cycles: Path) -> Weights:
    """What was seen to be forgotten f times, 1 + f times as likely as what never was: pi = min(1, c (1 + f))."""
    events = forgetting_events(cycles)
    return {lesson: 1.0 + events[lesson] for lesson in earlier}


CHOICES: dict[str, Callable[[Sequence[str], Path], Weights]] = {
    "uniform": uniform,
    "balanced": balanced,
    "forgetting": forgetting,
}


def replayed_lessons(earlier: Sequence[str], cycles: Path, settings: TrainSettings, cycle: int) -> tuple[str, ...]:
    """At most ``train.replay_lessons`` of the ``earlier`` lessons (:mod:`pipeline.train.sampling`), in their order.

    A function of the recipe and of what the cycles' folders hold.
    """
    if settings.replay_lessons == 0:
        return ()
    weights = CHOICES[settings.replay_choice](earlier, cycles)
    return drawn(weights, settings.replay_lessons, f"{settings.seed}/{cycle}")
