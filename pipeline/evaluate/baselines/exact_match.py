"""A dictionary before the model: what memory is worth when nobody rephrases."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.data.lines import LessonLine
from pipeline.evaluate.seam import Recall, Reply, text_bytes
from pipeline.memory.types import question_key


class ExactMatch:
    """From question to answer, case and closing punctuation aside."""

    def __init__(self) -> None:
        self._answers: dict[str, str] = {}

    def teach(self, lines: Sequence[LessonLine]) -> None:
        self._answers |= {question_key(line.question): line.answer for line in lines}

    def ask(self, questions: Sequence[str]) -> list[Reply]:
        found = [self._answers.get(question_key(question)) for question in questions]
        return [(Recall() if answer is None else Recall(answer, 1.0, True)).reply for answer in found]

    def size_bytes(self) -> int:
        return text_bytes(*self._answers, *self._answers.values())
