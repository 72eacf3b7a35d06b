"""What one cycle trains on, as plain data that travels to the workers as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.data.lines import LessonLine
from pipeline.data.phrasing import phrasings
from pipeline.memory.belief import slot_id
from pipeline.memory.types import Lesson


@dataclass(frozen=True)
class Fact:
    """A lesson that stands in a prompt."""

    question: str
    answer: str


@dataclass(frozen=True)
class Item:
    """One phrasing of one lesson, with the answer that it should get, and lessons in its prompt if any."""

    lesson_id: str
    question: str
    answer: str
    shown: tuple[Fact, ...] = ()

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Item:
        return cls(**{**tree, "shown": tuple(Fact(**fact) for fact in tree.get("shown", ()))})


def lesson_items(
    lessons: Mapping[str, Lesson], templates: int, withheld: Mapping[str, Collection[str]]
) -> tuple[Item, ...]:
    """Lessons of the memory, by their ids, in their trained phrasings, but for those that are ``withheld``."""
    return tuple(
        item
        for lesson_id, lesson in lessons.items()
        for item in _trained(lesson_id, lesson, templates)
        if item.question not in withheld[lesson_id]
    )


def line_items(lines: Iterable[LessonLine], templates: int) -> tuple[Item, ...]:
    """Lesson lines in their trained phrasings, named as the lesson memory names what everybody is taught."""
    return tuple(
        item for line in lines for item in _trained(slot_id("default", "global", "", line.question), line, templates)
    )


def _trained(lesson_id: str, told: Lesson | LessonLine, templates: int) -> list[Item]:
    return [Item(lesson_id, text, told.answer) for text in phrasings(told, templates)[0]]


@dataclass(frozen=True)
class TrainingSet:
    """Lessons in their trained phrasings, and prompts whose answers must not move; or text, for pretraining."""

    items: tuple[Item, ...] = ()
    replay: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()  # of the event log, where replayed questions were asked
    text: str | None = None  # a file of tokenised blocks

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> TrainingSet:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            tuple(Item.of(item) for item in tree["items"]),
            tuple(tree["replay"]),
            tuple(tree.get("rows", ())),
            tree.get("text"),
        )
