"""Plain retrieval: the nearest lessons stand in every prompt, and nothing decides whether they belong there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.lines import LessonLine
from pipeline.evaluate.protocol import prompt_messages
from pipeline.evaluate.seam import Generator, Reply, generate, text_bytes
from pipeline.memory.context import with_lessons
from pipeline.memory.types import SlotWeight, question_key
from pipeline.model.encoder import Encoder

SHOWN = 3  # lessons in a prompt


class Rag:
    """The top lessons by cosine, written into the prompt the way the ``context`` strategy writes them."""

    def __init__(self, answerer: Generator, encoder: Encoder, shown: int = SHOWN) -> None:
        self._answerer, self._encoder, self._shown = answerer, encoder, shown
        self._lessons: dict[str, SlotWeight] = {}
        self._keys: dict[str, NDArray[np.float32]] = {}
        self._stacked: NDArray[np.float32] | None = None  # (lessons, dimension)

    def teach(self, lines: Sequence[LessonLine]) -> None:
        for line, vector in zip(lines, self._encoder.encode([line.question for line in lines]), strict=True):
            key = question_key(line.question)
            self._lessons[key] = SlotWeight(key, line.question, line.answer, 1.0, 1.0)
            self._keys[key] = vector
        self._stacked = None

    def ask(self, questions: Sequence[str]) -> list[Reply]:
        if not self._lessons:
            return [Reply(text) for text in generate(self._answerer, [prompt_messages(q) for q in questions])]
        if self._stacked is None:
            self._stacked = np.stack(list(self._keys.values()))
        cosines = self._encoder.encode(questions) @ self._stacked.T  # (questions, lessons)
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : self._shown]
        lessons = list(self._lessons.values())
        prompts = [
            with_lessons(prompt_messages(question), [lessons[column] for column in columns])
            for question, columns in zip(questions, nearest.tolist(), strict=True)
        ]
        texts = generate(self._answerer, prompts)
        best = cosines.max(axis=1).tolist()
        return [Reply(text, True, text, cosine) for text, cosine in zip(texts, best, strict=True)]

    def size_bytes(self) -> int:
        texts = (text for lesson in self._lessons.values() for text in (lesson.question, lesson.answer))
        return text_bytes(*texts) + sum(vector.nbytes for vector in self._keys.values())
