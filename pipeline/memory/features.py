"""What a question and a lesson's phrasing have in common, in twelve numbers that need no corpus.

A word's rarity comes from the encoder's own word pieces: BERT's vocabulary is ordered by frequency, so by Zipf's law
the logarithm of a piece's rank is its surprise. The table ships with the encoder and does not change with the memory.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import DamerauLevenshtein
from rapidfuzz.process import cdist

FIRST_WORD_ID = 1996  # "the": ids below are control, unused and single characters
SINGLE_CHARACTER = 6.0  # what a piece outside the ranking counts: about a word of rank 400
ALIKE = 0.7  # similarity from which two words may be one with a typo: one edit in four letters

FEATURES = (
    "cosine", "margin", "lesson_covered", "question_covered", "lesson_worst", "question_worst",
    "rarest_lesson", "rarest_question", "digits_differ", "length_ratio", "digits_conflict", "size",
)  # fmt: skip

WORD = re.compile(r"[^\W_]+(?:['’.+#&-]*[^\W_]+)*[+#]*")


@dataclass(frozen=True)
class Pair:
    """A question beside one phrasing of one lesson, with what the first stage knows about them."""

    question: str
    phrasing: str
    cosine: float
    margin: float  # to the best phrasing of another lesson; positive for the nearest lesson
    asking: int = 0  # which question of the batch this is; its pairs compete with each other
    lesson: int = 0  # which of the question's lessons the phrasing belongs to; a lesson is no rival of itself
    size: int = 1  # lessons that the viewer's memory holds: the more, the likelier a near miss


@dataclass(frozen=True)
class Near:
    """A phrasing that the first stage found near a part of the question."""

    part: str
    phrasing: str
    cosine: float
    lesson: int


def beside_rivals(near: Sequence[Near], size: int, asking: int = 0) -> list[Pair]:
    """Candidates of one question, nearest first, each beside the best candidate of another lesson.

    Reading and training both take their pairs from here, so that the router sees what it was trained on.
    """
    pairs = []
    for own in near:
        rival = next((other.cosine for other in near if other.lesson != own.lesson), 0.0)
        pairs.append(Pair(own.part, own.phrasing, own.cosine, own.cosine - rival, asking, own.lesson, size))
    return pairs


class WordTable:
    """Words of a text with their surprise in nats, from a tokenizer that maps a text to piece ids."""

    def __init__(self, pieces: Callable[[str], Sequence[int]]) -> None:
        self._pieces = pieces
        self.words = lru_cache(maxsize=50_000)(self._words)
        self._surprise_of = lru_cache(maxsize=50_000)(self._surprise)

    def _words(self, text: str) -> dict[str, float]:
        return {word: self._surprise_of(word) for word in dict.fromkeys(stems(text))}

    def _surprise(self, word: str) -> float:
        pieces = self._pieces(word)
        ranked = (log(2 + i - FIRST_WORD_ID) if i >= FIRST_WORD_ID else SINGLE_CHARACTER for i in pieces)
        return float(sum(ranked) / len(pieces) ** 0.5)


def features(pairs: Sequence[Pair], table: WordTable) -> NDArray[np.float32]:
    """(pairs, len(FEATURES)) float32."""
    rows = np.empty((len(pairs), len(FEATURES)), dtype=np.float32)
    by_question: dict[str, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        by_question[pair.question].append(row)
    for question, own in by_question.items():
        asked, known = table.words(question), [table.words(pairs[row].phrasing) for row in own]
        alike = _Alike(asked, known)
        for row, words in zip(own, known, strict=True):
            rows[row] = _row(pairs[row], asked, words, alike)
    return rows


class _Alike:
    """How alike each word of a question and each word of what it is read beside are: 1 - edits / length, or 0."""

    def __init__(self, asked: Collection[str], known: Sequence[Collection[str]]) -> None:
        self._asked = asked
        columns = dict.fromkeys(word for words in known for word in words)
        self._columns = {word: column for column, word in enumerate(columns)}
        left, right = list(asked), list(columns)
        # A swap of two letters is one edit (Damerau 1964).
        similarity = DamerauLevenshtein.normalized_similarity
        self._table = cdist(left, right, scorer=similarity, score_cutoff=ALIKE, dtype=np.float64)
        numbers = np.logical_or.outer([_has_digit(word) for word in left], [_has_digit(word) for word in right])
        self._table[numbers & (self._table < 1)] = 0.0  # numbers are alike or they are not

    def best(self, known: Collection[str]) -> tuple[dict[str, float], dict[str, float]]:
        """The nearest that the question has to each word of ``known``, and ``known`` to each of the question's."""
        if not self._asked or not known:
            return dict.fromkeys(known, 0.0), dict.fromkeys(self._asked, 0.0)
        part = self._table[:, [self._columns[word] for word in known]]
        in_question, in_lesson = part.max(axis=0).tolist(), part.max(axis=1).tolist()
        return dict(zip(known, in_question, strict=True)), dict(zip(self._asked, in_lesson, strict=True))


def nearest(words: Collection[str], others: Collection[str]) -> dict[str, float]:
    """How alike each word and the nearest of ``others`` are, from 0 to 1."""
    return _Alike(words, [others]).best(others)[1]


def _row(pair: Pair, asked: dict[str, float], known: dict[str, float], alike: _Alike) -> tuple[float, ...]:
    in_question, in_lesson = alike.best(known)
    asked_digits, known_digits = _with_digits(asked), _with_digits(known)
    return (
        pair.cosine,
        pair.margin,
        covered(known, in_question),
        covered(asked, in_lesson),
        _worst(known, in_question),
        _worst(asked, in_lesson),
        _rarest(known, in_question),
        _rarest(asked, in_lesson),
        float(asked_digits != known_digits),
        log((1 + len(asked)) / (1 + len(known))),
        float(bool(asked_digits - known_digits) and bool(known_digits - asked_digits)),
        log(max(1, pair.size)),
    )


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


def _with_digits(words: dict[str, float]) -> set[str]:
    return {word for word in words if _has_digit(word)}


def covered(words: dict[str, float], found: dict[str, float]) -> float:
    """The share of the surprise that the other side has too."""
    return sum(found[w] * s for w, s in words.items()) / (sum(words.values()) or 1.0)


def _worst(words: dict[str, float], found: dict[str, float]) -> float:
    """The largest surprise that the other side lacks, in units of ten nats."""
    return max(((1 - found[w]) * s for w, s in words.items()), default=0.0) / 10


def _rarest(words: dict[str, float], found: dict[str, float]) -> float:
    """How far the other side has the most surprising word: the subject, mostly."""
    return found[max(words, key=lambda w: words[w])] if words else 0.0


def stems(text: str) -> list[str]:
    """The words of ``text`` in their order, in lower case and without possessive endings."""
    return [stem(word) for word in WORD.findall(text.casefold())]


def stem(word: str) -> str:
    """``word``, in lower case, without a possessive ending."""
    return word.removesuffix("'s").removesuffix("’s")
