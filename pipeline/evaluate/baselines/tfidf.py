"""The nearest lesson by character n-grams, taken when it is near enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.data.lines import LessonLine
from pipeline.evaluate.seam import Recall, Reply, text_bytes
from pipeline.memory.types import question_key

THRESHOLD = 0.5  # cosine; the best for both: lessons_dev, lines 0 to 999, and the example stream's part fit


class TfIdf:
    """A store keyed by TF-IDF vectors of character 3- to 5-grams inside words, weighted anew as lessons come."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self._threshold = threshold
        self._lessons: dict[str, tuple[str, str]] = {}  # key -> (question, answer)
        self._fitted: tuple[Any, Any] | None = None  # vectoriser, (lessons, n-grams)

    def teach(self, lines: Sequence[LessonLine]) -> None:
        self._lessons |= {question_key(line.question): (line.question, line.answer) for line in lines}
        self._fitted = None

    def ask(self, questions: Sequence[str]) -> list[Reply]:
        return [recall.reply for recall in self._recall(questions)]

    def size_bytes(self) -> int:
        vectors = self._fit()[1] if self._lessons else None
        arrays = (vectors.data, vectors.indices, vectors.indptr) if vectors is not None else ()
        texts = (text for lesson in self._lessons.values() for text in lesson)
        return text_bytes(*texts) + sum(array.nbytes for array in arrays)

    def _fit(self) -> tuple[Any, Any]:
        if self._fitted is None:
            from sklearn.feature_extraction.text import TfidfVectorizer

            vectoriser = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, dtype=np.float32)
            self._fitted = vectoriser, vectoriser.fit_transform(question for question, _ in self._lessons.values())
        return self._fitted

    def _recall(self, questions: Sequence[str]) -> list[Recall]:
        if not self._lessons:
            return [Recall() for _ in questions]
        vectoriser, keys = self._fit()
        cosines = (vectoriser.transform(questions) @ keys.T).toarray()  # (questions, lessons)
        answers = [answer for _, answer in self._lessons.values()]
        nearest = cosines.argmax(axis=1)
        return [
            Recall(answers[column], float(row[column]), bool(row[column] >= self._threshold))
            for row, column in zip(cosines, nearest, strict=True)
        ]
