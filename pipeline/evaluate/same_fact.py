"""Neighbours that another lesson corrects in other words.

A neighbour asks about another subject, and in a long stream another lesson corrects just that: after "The Stone Roses
started in" was corrected, "The Stone Roses formed in" is no question to leave alone. The file's own labels tell, and no
system is asked: the neighbour names the lesson's subject, and its recorded answer is the one that the lesson replaced
(``previous``). Lines without ``neighbour_answers`` or ``previous`` take no part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pipeline.data.lines import LessonLine
from pipeline.evaluate.baselines.subject_index import told_subject
from pipeline.evaluate.protocol import normalise
from pipeline.memory.types import question_key

_WORD = re.compile(r"\w+")

_OPENERS = frozenset((
    "the", "a", "an", "in", "on", "at", "of", "for", "from", "what", "which", "who", "whose", "where", "when",
))  # fmt: skip

Fact = tuple[str, str]  # the subject's words, and what was said of it before the lesson


def corrected_neighbours(taught: Sequence[LessonLine]) -> dict[str, str]:
    """The key of each neighbour that asks for what a lesson of ``taught`` corrects, and that lesson's answer.

    Of several such lessons the last one counts, and of several subjects that a neighbour names the longest.
    """
    facts: dict[Fact, str] = {}
    for line in taught:
        subject = told_subject(line)
        if subject and line.previous:
            facts[" ".join(_WORD.findall(subject)).casefold(), normalise(line.previous)] = line.answer
    longest = max((subject.count(" ") + 1 for subject, _ in facts), default=0)
    found: dict[str, str] = {}
    for line in taught:
        for text, answer in zip(line.neighbours, line.neighbour_answers, strict=False):
            named = ((subject, normalise(answer)) for subject in _names(text, longest))
            fact = next((fact for fact in named if fact in facts), None)
            if fact:
                found[question_key(text)] = facts[fact]
    return found


def _names(text: str, longest: int) -> Iterator[str]:
    """Every run of words that no name goes on beside, longest first: "Fiat 500 Moretti" does not name "Fiat 500"."""
    words = list(_WORD.finditer(text))
    goes_on = [_one_name(text, left, right) for left, right in pairwise(words)]
    for size in range(min(longest, len(words)), 0, -1):
        for start in range(len(words) - size + 1):
            end = start + size
            if not any(goes_on[max(start - 1, 0) : start]) and not any(goes_on[end - 1 : end]):
                yield " ".join(word.group() for word in words[start:end]).casefold()


def _one_name(text: str, left: re.Match[str], right: re.Match[str]) -> bool:
    """Whether two words that follow each other are parts of a name: capitals or numbers, a blank or a dash between."""
    if text[left.end() : right.start()] not in (" ", "-") or left.group().casefold() in _OPENERS:
        return False
    return not left.group()[0].islower() and not right.group()[0].islower()
