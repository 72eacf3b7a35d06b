"""R[i][j] of a home's own cycles: every cycle asks about its lessons and about a sample of the earlier ones'."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluate import continual
from pipeline.evaluate.compare import Examination, Outcome
from pipeline.feedback.manifest import Manifest, manifests

ROW, HEAT_MAP, ANSWERS = "retained.json", "retained.png", "answered.json"


@dataclass(frozen=True)
class Retained:
    """The matrix so far: ``matrix[i][j]`` belongs to ``cycles[i]`` and ``cycles[j]``."""

    cycles: tuple[int, ...]
    matrix: tuple[tuple[float | None, ...], ...]

    def figures(self) -> dict[str, float]:
        """Of the cycles that the last one asked about; empty where an earlier row lacks one of their cells."""
        found = continual.measured(self.matrix)
        whole = found and all(cell is not None for i, row in enumerate(found) for cell in row[: i + 1])
        return continual.summary(found) if whole else {}


def trained_in(manifests: Sequence[Manifest]) -> dict[str, int]:
    """The last cycle that trained each lesson."""
    return {lesson: manifest.cycle for manifest in manifests for lesson in manifest.lessons}


def record_row(folder: Path, cycle: int, exam: Examination, challenger: Outcome) -> None:
    """What this cycle's challenger knew of its own lessons and of each earlier cycle's: shares, and of how many."""
    answers: dict[int, list[bool]] = defaultdict(list)
    answers[cycle].extend(challenger.new_lessons)
    for number, right in zip(exam.earlier_cycles, challenger.earlier, strict=True):
        answers[number].append(right)
    row = {str(number): {"right": sum(asked), "n": len(asked)} for number, asked in sorted(answers.items()) if asked}
    (folder / ROW).write_text(json.dumps(row, indent=2), encoding="utf-8")


def record_answers(folder: Path, lessons: Sequence[str], exam: Examination, serving: Outcome) -> None:
    """Which lessons the model that serves after this cycle answers right without memory: the cycle's own ``lessons``
    and the earlier ones that were asked."""
    known = dict(zip((*lessons, *exam.earlier_lessons), (*serving.new_lessons, *serving.earlier), strict=True))
    (folder / ANSWERS).write_text(json.dumps(known, indent=2), encoding="utf-8")


def forgetting_events(cycles: Path) -> Counter[str]:
    """How often each lesson was forgotten: right after one cycle and wrong when it was asked the next time.

    These are the forgetting events of Toneva et al. 2019 (arXiv:1812.05159), counted between cycles instead of epochs.
    A lesson that a cycle was taught anew begins again: it may have another answer. One that was never right was never
    forgotten.
    """
    events, before = Counter[str](), dict[str, bool]()
    for manifest in manifests(cycles):
        for lesson in manifest.lessons:
            before.pop(lesson, None)
            events.pop(lesson, None)
        file = cycles / f"{manifest.cycle:06d}" / ANSWERS
        answered: dict[str, bool] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        events.update(lesson for lesson, right in answered.items() if before.get(lesson) and not right)
        before |= answered
    return events


def retained(cycles: Path) -> Retained:
    """From the rows that the cycles' folders hold."""
    rows = {
        int(file.parent.name): {int(j): cell["right"] / cell["n"] for j, cell in json.loads(file.read_text()).items()}
        for file in sorted(cycles.glob(f"*/{ROW}"))
    }
    numbers = tuple(sorted(rows))
    return Retained(numbers, tuple(tuple(rows[i].get(j) for j in numbers) for i in numbers))


def draw(found: Retained, path: Path) -> None:
    continual.heat_map({"right on the lessons of each cycle": found.matrix}, path, found.cycles)
