"""The prompts that a cycle replays: those that ship with the package, and questions that people asked."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import Recipe
from pipeline.data.examples import example
from pipeline.data.lines import ProbeLine, read_lines
from pipeline.feedback.manifest import Manifest
from pipeline.feedback.records import Event
from pipeline.memory.strategy import EVEN
from pipeline.memory.types import Viewer
from pipeline.model.bundle import Bundle


def shipped_prompts() -> tuple[str, ...]:
    return tuple(line.question for line in read_lines(example("replay/prompts.jsonl"), ProbeLine))


def served_prompts(history: Sequence[Event], manifest: Manifest, recipe: Recipe, champion: Bundle) -> dict[int, str]:
    """The manifest's served questions that no lesson answers in other words either, by their rows.

    What the lesson memory would answer today is meant to change: to replay it would hold the weights back.
    """
    if not manifest.served:
        return {}
    from pipeline.memory.router import load_router
    from pipeline.memory.store import LessonMemory
    from pipeline.model.encoder import load_encoder

    asked = [event for event in history if event.seq in {*manifest.served}]
    memory = LessonMemory(load_encoder(recipe.model.encoder), load_router(champion.router), recipe.memory)
    memory.apply(history)
    readings = memory.read([event.body["question"] for event in asked], [Viewer(event.tenant) for event in asked])
    return {event.seq: event.body["question"] for event, read in zip(asked, readings, strict=True) if read.gate < EVEN}
