"""No fact is fitted on and reported on, in whatever words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.lines import LessonLine
from pipeline.memory.clusters import apart, fact_clusters, split


class Letters:
    """Texts with the same letters have the same vector."""

    name, dimension = "letters", 26

    def encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        rows = np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in inputs], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def line(question: str, *paraphrases: str) -> LessonLine:
    return LessonLine(question=question, answer="x", paraphrases=paraphrases)


def test_lines_whose_phrasings_are_near_are_one_cluster_also_by_way_of_a_third() -> None:
    lines = [line("abc"), line("xyz"), line("cab", "def"), line("fed"), line("qq")]
    first, other, second, third, alone = fact_clusters(lines, Letters())
    assert first == second == third
    assert len({first, other, alone}) == 3


def test_a_split_parts_no_cluster_and_loses_no_line() -> None:
    letters = "abcdefghijklmnopqrst"
    lines = [line(letter * times) for letter in letters for times in (1, 2, 3)]
    known, held_out = split(lines, Letters())
    assert len(known) + len(held_out) == len(lines)
    assert {text.question[0] for text in held_out} == {"a", "k"}
    assert not {text.question[0] for text in known} & {"a", "k"}


def test_what_is_measured_on_is_in_no_words_among_what_is_learned() -> None:
    lines = [line("abc"), line("xyz", "cba")]
    assert apart([*lines, line("pqr")], [line("bca")], Letters()) == [line("pqr")]
    assert apart(lines, [], Letters()) == lines
