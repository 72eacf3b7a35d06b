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
from pipeline.evaluate.protocol import normalise
from pipeline.memory.router_data import shared_run
from pipeline.memory.types import question_key

SHORTEST = 3  # letters that are hardly a name yet

_WORD = re.compile(r"\w+")

_OPENERS = frozenset((
    "the", "a", "an", "in", "on", "at", "of", "for", "from", "what", "which", "who", "whose", "where", "when",
))  # fmt: skip
_LINKS = frozenset(("of", "for", "de", "and"))  # may stand inside a name

Fact = tuple[str, str]  # the subject's words, and what was said of it before the lesson


def corrected_neighbours(taught: Sequence[LessonLine]) -> dict[str, str]:
    """The key of each neighbour that asks for what a lesson of ``taught`` corrects, and that lesson's answer.

    Of several such lessons the last one counts, and of several subjects that a neighbour names the longest.
    """
    facts: dict[Fact, str] = {}
    for line in taught:
        subject = _subject(line)
        if subject and line.previous:
            facts[subject, normalise(line.previous)] = line.answer
    longest = max((subject.count(" ") + 1 for subject, _ in facts), default=0)
    found: dict[str, str] = {}
    for line in taught:
        for text, answer in zip(line.neighbours, line.neighbour_answers, strict=False):
            named = ((subject, normalise(answer)) for subject in _names(text, longest))
            fact = next((fact for fact in named if fact in facts), None)
            if fact:
                found[question_key(text)] = facts[fact]
    return found


def _subject(line: LessonLine) -> str:
    """The words of the file's own field, else of the name that the question shares with its first paraphrase.

    ``subject_of`` takes what stands between blanks, and so loses "Flores" where one wording has "Flores, the".
    """
    if line.subject:
        return " ".join(_WORD.findall(line.subject)).casefold()
    if not line.paraphrases:
        return ""
    run = shared_run(_WORD.findall(line.question), _WORD.findall(line.paraphrases[0]))
    while run and (run[0][0].islower() or run[0].casefold() in _OPENERS):
        run.pop(0)
    while run and run[-1][0].islower():
        run.pop()
    subject = " ".join(run).casefold()
    return subject if len(subject) > SHORTEST else ""


def _names(text: str, longest: int) -> Iterator[str]:
    """Every run of words that no name goes on beside, longest first: "Fiat 500 Moretti" does not name "Fiat 500"."""
    words = list(_WORD.finditer(text))
    goes_on = _goes_on(text, words)
    for size in range(min(longest, len(words)), 0, -1):
        for start in range(len(words) - size + 1):
            end = start + size
            if not any(goes_on[max(start - 1, 0) : start]) and not any(goes_on[end - 1 : end]):
                yield " ".join(word.group() for word in words[start:end]).casefold()


def _goes_on(text: str, words: Sequence[re.Match[str]]) -> list[bool]:
    """For each word but the last, whether the next one belongs to the same name: "BMW M60", "Anthony of Saxony"."""
    written_on = [text[left.end() : right.start()] in (" ", "-") for left, right in pairwise(words)]
    of_a_name = [not word.group()[0].islower() and word.group().casefold() not in _OPENERS for word in words]
    goes_on = [
        on and left and not right.group()[0].islower()
        for on, left, right in zip(written_on, of_a_name, words[1:], strict=False)
    ]
    for n in range(1, len(words) - 1):
        if words[n].group() in _LINKS and of_a_name[n - 1] and of_a_name[n + 1] and all(written_on[n - 1 : n + 1]):
            goes_on[n - 1] = goes_on[n] = True
    return goes_on
