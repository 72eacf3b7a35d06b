"""A question's slips of the pen, mended by the words of the lesson that it is read beside, or by common words.

The pair encoder reads a misspelt name as another name. A word that the encoder's vocabulary does not hold as a whole,
and that is one edit from a word of the lesson (a letter changed, lost, doubled, or two swapped: Damerau 1964), is read
as that word; else, where it is one edit from a word that the vocabulary holds, as the most frequent such word. Words
that the vocabulary or the lesson has stay: "Iraq" is no slip of "Iran".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain

from rapidfuzz.distance import OSA
from rapidfuzz.process import extract

LEAST_COMMON = 5  # letters of a common word: shorter ones are one edit from too many others

_WORD = re.compile(r"[^\W\d_]{4,}")  # in shorter ones an edit is too much of the word


class Mender:
    """``pieces``: the tokenizer's ids of a word; ``common``: whole words, the most frequent first."""

    def __init__(self, pieces: Callable[[str], Sequence[int]], common: Sequence[str] = ()) -> None:
        self._is_known = lru_cache(maxsize=50_000)(lambda word: len(pieces(word)) == 1)
        self._ranks = {word: rank for rank, word in enumerate(common) if len(word) >= LEAST_COMMON}
        self._by_length: dict[int, list[str]] = defaultdict(list)
        for word in self._ranks:
            self._by_length[len(word)].append(word)
        self._meant = lru_cache(maxsize=50_000)(self._common_word)

    def mended(self, question: str, phrasing: str) -> str:
        """``question`` with the lesson's spelling, or the common one, where a word of it is a slip."""
        spelt = {word.casefold(): word for word in _WORD.findall(phrasing)}

        def mend(found: re.Match[str]) -> str:
            word = found.group().casefold()
            if word in spelt or self._is_known(word):
                return found.group()
            here = next((spelt[other] for other in spelt if _one_edit(word, other)), None)
            return here or self._meant(word) or found.group()

        return _WORD.sub(mend, question)

    def _common_word(self, word: str) -> str | None:
        if len(word) < LEAST_COMMON:
            return None
        alike = (self._by_length.get(len(word) + more, ()) for more in (-1, 0, 1))
        near = chain.from_iterable(alike)
        found = extract(word, near, scorer=OSA.distance, score_cutoff=1, limit=None)  # type: ignore[arg-type]
        return min((other for other, _, _ in found), key=self._ranks.__getitem__, default=None)


def common_words(vocabulary: Mapping[str, int]) -> list[str]:
    """Whole words of a vocabulary that is ordered by frequency, as BERT's is; parts of words have a mark in front."""
    return [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if word.isalpha()]


def _one_edit(left: str, right: str) -> bool:
    """In one edit optimal string alignment is Damerau's distance, and faster."""
    return OSA.distance(left, right, score_cutoff=1) <= 1
