"""A router on lessons that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pipeline.config import MemorySettings
from pipeline.data.lines import LessonLine
from pipeline.evaluate.metrics import Interval, share
from pipeline.memory.belief import slot_id, taught_event
from pipeline.memory.router import load_router
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Reading, Viewer
from pipeline.model.encoder import Encoder


def held_out_figures(
    tensors: Mapping[str, Tensor], lines: Sequence[LessonLine], encoder: Encoder, settings: MemorySettings | None = None
) -> dict[str, Interval]:
    """All lines in one memory, by question and answer alone.

    ``paraphrase``: the right lesson has the largest weight and the gate is open; ``neighbour``: the gate stays shut.
    """
    settings = settings or MemorySettings()
    memory = LessonMemory(encoder, load_router(tensors), settings)
    ids = [slot_id("default", "global", "", line.question) for line in lines]
    memory.apply(taught_event(line, number) for number, line in enumerate(lines, 1))

    def read(questions: list[str]) -> list[Reading]:
        return memory.read(questions, [Viewer()] * len(questions))

    asked = [(text, lesson_id) for line, lesson_id in zip(lines, ids, strict=True) for text in line.paraphrases]
    readings = read([text for text, _ in asked])
    right = [
        reading.gate > settings.gate and reading.slots[0].lesson_id == lesson_id
        for reading, (_, lesson_id) in zip(readings, asked, strict=True)
    ]
    shut = [reading.gate <= settings.gate for reading in read([text for line in lines for text in line.neighbours])]
    return {"paraphrase": share(right), "neighbour": share(shut)}
