"""A dictionary from subject to answer. It is told every lesson's subject, which no other system is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.data.lines import LessonLine
from pipeline.evaluate.seam import Recall, Reply, text_bytes
from pipeline.memory.router_data import subject_of

_WORD = re.compile(r"\w+")


class SubjectIndex:
    """The latest lesson about the longest known subject that the question names, whatever is asked about it."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, ...], str] = {}  # the subject's words -> answer
        self._longest = 0

    def teach(self, lines: Sequence[LessonLine]) -> None:
        for line in lines:
            words = _words(subject_of(line) or line.question)
            self._answers[words] = line.answer
            self._longest = max(self._longest, len(words))

    def ask(self, questions: Sequence[str]) -> list[Reply]:
        return [self._recall(question).reply for question in questions]

    def size_bytes(self) -> int:
        return text_bytes(*(" ".join(words) for words in self._answers), *self._answers.values())

    def _recall(self, question: str) -> Recall:
        words = _words(question)
        for size in range(min(self._longest, len(words)), 0, -1):
            for start in range(len(words) - size + 1):
                if (answer := self._answers.get(words[start : start + size])) is not None:
                    return Recall(answer, float(size), True)
        return Recall()


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))
