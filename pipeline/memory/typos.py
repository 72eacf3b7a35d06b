"""A question's slips of the pen, mended by the words of the lesson that it is read beside.

The pair encoder reads a misspelt name as another name. A word that the encoder's vocabulary does not hold as a whole,
and that is one edit from a word of the lesson (a letter changed, lost, doubled, or two swapped: Damerau 1964), is read
as that word. Words that the vocabulary knows stay: "Iraq" is no slip of "Iran".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from rapidfuzz.distance import DamerauLevenshtein

_WORD = re.compile(r"[^\W\d_]{4,}")  # in shorter ones an edit is too much of the word


class Mender:
    """``pieces``: the tokenizer's ids of a word."""

    def __init__(self, pieces: Callable[[str], Sequence[int]]) -> None:
        self._is_known = lru_cache(maxsize=50_000)(lambda word: len(pieces(word)) == 1)

    def mended(self, question: str, phrasing: str) -> str:
        """``question`` with the lesson's spelling where a word of it is a slip of the lesson's."""
        spelt = {word.casefold(): word for word in _WORD.findall(phrasing)}

        def mend(found: re.Match[str]) -> str:
            word = found.group().casefold()
            if word in spelt or self._is_known(word):
                return found.group()
            return next((spelt[other] for other in spelt if _one_edit(word, other)), found.group())

        return _WORD.sub(mend, question)


def _one_edit(left: str, right: str) -> bool:
    return DamerauLevenshtein.distance(left, right, score_cutoff=1) <= 1
