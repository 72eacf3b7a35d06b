"""R[i][j] of a home's own cycles: every cycle asks about its lessons and about a sample of the earlier ones'."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluate import continual
from pipeline.evaluate.compare import Examination, Outcome
from pipeline.feedback.manifest import Manifest

ROW, HEAT_MAP = "retained.json", "retained.png"


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
