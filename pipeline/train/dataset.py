"""What one cycle trains on, as plain data that travels to the workers as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.data.lines import LessonLine
from pipeline.data.phrasing import phrasings
from pipeline.memory.belief import slot_id


@dataclass(frozen=True)
class Item:
    """One phrasing of one lesson, with the answer that it should get."""

    lesson_id: str
    question: str
    answer: str


def line_items(lines: Iterable[LessonLine], templates: int) -> tuple[Item, ...]:
    """Lesson lines in their trained phrasings, named as the lesson memory names what everybody is taught."""
    return tuple(
        Item(slot_id("default", "global", "", line.question), text, line.answer)
        for line in lines
        for text in phrasings(line, templates)[0]
    )


@dataclass(frozen=True)
class TrainingSet:
    """Lessons in their trained phrasings, and prompts whose answers must not move; or text, for pretraining."""

    items: tuple[Item, ...] = ()
    replay: tuple[str, ...] = ()
    text: str | None = None  # a file of tokenised blocks

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> TrainingSet:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return cls(tuple(Item(**item) for item in tree["items"]), tuple(tree["replay"]), tree.get("text"))
