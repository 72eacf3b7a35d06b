"""A router on lessons that it was not trained on: what it opens for, what it leaves alone, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.config import MemorySettings
from pipeline.data.lines import LessonLine
from pipeline.evaluate.exam import Exam
from pipeline.evaluate.metrics import Interval, calibration_error, share
from pipeline.memory.belief import taught_event
from pipeline.memory.router import Router, load_router
from pipeline.memory.router_examples import others_of
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Reading, Viewer, question_key
from pipeline.model.encoder import Encoder

PART = 256  # questions read at once


@dataclass(frozen=True)
class Routed:
    """One question and what the reading made of it."""

    # question | paraphrase | roundabout | neighbour (another subject) | other (the same subject, another relation)
    kind: str
    gate: float
    applies: bool  # a lesson of the memory asks this: so worded, as a paraphrase, or as another lesson's neighbour
    right: bool  # ... and the heaviest lesson has its answer

    def correct(self, gate: float) -> bool:
        return self.right and self.gate > gate if self.applies else self.gate <= gate


def route(
    router: Router,
    lines: Sequence[LessonLine],
    probes: Sequence[LessonLine],
    encoder: Encoder,
    settings: MemorySettings | None = None,
) -> list[Routed]:
    """Teach ``lines`` by question and answer alone, then ask everything that ``probes``, which are among them, name."""
    memory = LessonMemory(encoder, router, settings)
    memory.apply(taught_event(line, number) for number, line in enumerate(lines, 1))
    expected = Exam(tuple(lines)).corrections()
    asked = [("question", line.question) for line in probes]
    asked += [("paraphrase", text) for line in probes for text in line.paraphrases]
    asked += [("roundabout", text) for line in probes for text in roundabout_of(line)]
    asked += [("neighbour", text) for line in probes for text in line.neighbours]
    asked += [("other", text) for line in probes for text in others_of(line)]
    expected |= {question_key(text): line.answer for line in probes for text in roundabout_of(line)}
    readings = [
        reading
        for start in range(0, len(asked), PART)
        for reading in _read(memory, [text for _, text in asked[start : start + PART]])
    ]
    return [
        _routed(kind, reading, expected.get(question_key(text)))
        for (kind, text), reading in zip(asked, readings, strict=True)
    ]


def roundabout_of(line: LessonLine) -> list[str]:
    """Paraphrases that describe what they ask about instead of naming it (a field of lines that measure a router)."""
    return list(line.extra("roundabout", ()))


def _read(memory: LessonMemory, texts: list[str]) -> list[Reading]:
    return memory.read(texts, [Viewer()] * len(texts))


def _routed(kind: str, reading: Reading, answer: str | None) -> Routed:
    right = answer is not None and bool(reading.slots) and reading.slots[0].answer == answer
    return Routed(kind, reading.gate, answer is not None, right)


def figures(routed: Sequence[Routed], gate: float) -> dict[str, Interval]:
    """Shares of questions and paraphrases answered by the right lesson, and of the rest that no lesson answers."""
    kinds = dict.fromkeys(item.kind for item in routed)
    return {kind: share([item.correct(gate) for item in routed if item.kind == kind]) for kind in kinds}


def calibration(routed: Sequence[Routed]) -> float:
    """Expected calibration error of the weight on lessons as the probability that the heaviest one is right.

    Questions in the lesson's own words are left out: they are settled without the router, and would flatter it.
    """
    asked = [item for item in routed if item.kind != "question"]
    return calibration_error([item.gate for item in asked], [item.applies and item.right for item in asked])


def held_out_figures(
    tensors: Mapping[str, Tensor], lines: Sequence[LessonLine], encoder: Encoder, settings: MemorySettings | None = None
) -> dict[str, Interval]:
    """All lines in one memory: ``paraphrase`` answered by the right lesson, ``neighbour`` and ``other`` by none."""
    settings = settings or MemorySettings()
    return figures(route(load_router(tensors), lines, lines, encoder, settings), settings.gate)
