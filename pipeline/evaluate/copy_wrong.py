"""Questions that lessons bear on and that are not answered by copying a lesson: generated from any lesson file.

- ``yes``, ``no``: is this the lesson's answer? (the wrong ones name the answer before, or another lesson's)
- ``compare``: the answer is a year or a number: was it before 2018, is it more than 20?
- ``reversed``: the answer is given, the subject is asked
- ``two_hop``: a lesson's subject is described by the question of another lesson, whose answer it is

Wordings are natural where the question's form is known ("What is the …?"), and quote the lesson where it is not, so
that cloze texts work too. A lesson whose own answer is yes or no gets no probe.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.data.lines import LessonLine, ProbeLine
from pipeline.data.phrasing import lowered
from pipeline.evaluate.protocol import exact_match, normalise
from pipeline.memory.router_data import subject_of

Kind = Literal["yes", "no", "compare", "reversed", "two_hop"]

GAP = "___"
_WHAT_IS = re.compile(r"^(?:What|Who) (is|are|was|were) (the .+?)\?$", re.IGNORECASE)
_OF_SUBJECT = re.compile(r"^(?:What|Who) (is|was) (the [^?]+ (?:of|in|for|from|at)) ___\?$", re.IGNORECASE)
_YEAR = re.compile(r"(?<![:.-])\b(1[0-9]{3}|20[0-9]{2}|(?<=in )\d{3})$")
_NUMBER = re.compile(r"^(\d{1,3}(?:,\d{3})+|\d+)(?: [a-z]+)?$")
_OPEN_ENDED = re.compile(r"\b(called|named|known|renamed|now|today|currently|nowadays)\b", re.IGNORECASE)
SHORTEST_LINK = 4  # characters of an answer that may link two lessons: "X" or "10" stand in too many questions


class CopyWrongProbe(ProbeLine):
    """A probe with the lessons that it needs, by their questions."""

    kind: Kind
    needs: tuple[str, ...]


def right_by_first_word(answers: Sequence[str], text: str) -> bool:
    """A laxer score for yes and no than the protocol's whole string ("Yes, it is."), to be labelled so."""
    if answers[0] not in ("yes", "no"):
        return exact_match(text, answers)
    return normalise(text).split(" ")[0] == answers[0]


def copy_wrong(lines: Sequence[LessonLine], seed: int = 0) -> list[CopyWrongProbe]:
    """The probes of ``lines``, in their order; the same for the same lines and seed."""
    draw = random.Random(seed)
    usable = [line for line in lines if normalise(line.answer) not in ("yes", "no")]
    subjects = _subjects_by_relation(usable)
    links = _links(usable)
    probes: list[CopyWrongProbe] = []
    for line in usable:
        probes += [*_yes_no(line, usable, draw), *_compare(line, draw)]
        probes += [*_reversed(line, subjects, draw), *_two_hop(line, links.get(line.question))]
    return probes


def statement(question: str, answer: str) -> str:
    """A lesson on one line, whether it is a question or a cloze text."""
    return f"{question.rstrip()} {answer}"


def _probe(kind: Kind, question: str, answers: Sequence[str], *needs: LessonLine) -> CopyWrongProbe:
    return CopyWrongProbe(
        question=question, answers=tuple(answers), kind=kind, needs=tuple(line.question for line in needs)
    )


# yes or no


def _yes_no(line: LessonLine, lines: Sequence[LessonLine], draw: random.Random) -> Iterator[CopyWrongProbe]:
    yield _probe("yes", _asked_whether(line, line.answer, draw), ["yes"], line)
    wrong = _wrong_answer(line, lines, draw)
    if wrong is not None:
        yield _probe("no", _asked_whether(line, wrong, draw), ["no"], line)


def _wrong_answer(line: LessonLine, lines: Sequence[LessonLine], draw: random.Random) -> str | None:
    """The answer before the lesson, else some other lesson's."""
    if line.previous and normalise(line.previous) not in ("", "none", normalise(line.answer)):
        return line.previous
    others = [other.answer for other in lines if normalise(other.answer) != normalise(line.answer)]
    return draw.choice(others) if others else None


def _asked_whether(line: LessonLine, answer: str, draw: random.Random) -> str:
    question = line.question.rstrip()
    quoted = [f'Is "{answer}" the right answer to "{question}"?', f"Is this right? {statement(question, answer)}"]
    if (plain := _WHAT_IS.match(question)) and not _OPEN_ENDED.search(question):
        return draw.choice([f"{plain[1].capitalize()} {plain[2]} {answer}?", quoted[0]])
    if not question.endswith("?"):
        return draw.choice([f"Is it true that {statement(question, answer)}?", quoted[1]])
    return draw.choice(quoted)


# before a year, more than a number


def _compare(line: LessonLine, draw: random.Random) -> Iterator[CopyWrongProbe]:
    year = None if line.question.lower().startswith("how ") else _YEAR.search(line.answer)
    if year:
        bound = int(year[1]) + draw.choice((-9, -4, -1, 1, 4, 9))
        answer = "yes" if int(year[1]) < bound else "no"
        yield _probe("compare", f"{line.question.rstrip()} Was it before {bound}?", [answer], line)
    elif number := _NUMBER.match(line.answer):
        value = int(number[1].replace(",", ""))
        bound = max(0, value + draw.choice((-1, 1)) * max(1, value // draw.choice((2, 4, 10))))
        answer = "yes" if value > bound else "no"
        yield _probe("compare", f"{line.question.rstrip()} Is it more than {bound}?", [answer], line)


# from the answer to the subject


def _subjects_by_relation(lines: Sequence[LessonLine]) -> dict[tuple[str, str], list[str]]:
    """(question with a gap, answer) to every subject that fits: all of them are right."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in lines:
        if gapped := _gapped(line):
            found[gapped[0].casefold(), normalise(line.answer)].append(gapped[1])
    return found


def _gapped(line: LessonLine) -> tuple[str, str] | None:
    """(the question with a gap for its subject, the subject)."""
    subject = subject_of(line)
    if not subject or line.question.count(subject) != 1:
        return None
    return line.question.rstrip().replace(subject, GAP), subject


def _reversed(
    line: LessonLine, subjects: dict[tuple[str, str], list[str]], draw: random.Random
) -> Iterator[CopyWrongProbe]:
    gapped = _gapped(line)
    if gapped is None or normalise(gapped[1]) in normalise(line.answer):
        return
    asked = f"Which name fits the gap? {statement(gapped[0], line.answer)}"
    if plain := _OF_SUBJECT.match(gapped[0]):
        asked = draw.choice([asked, f"{line.answer} {plain[1]} {plain[2]} what?"])
    yield _probe("reversed", asked, subjects[gapped[0].casefold(), normalise(line.answer)], line)


# two lessons in a chain


def _links(lines: Sequence[LessonLine]) -> dict[str, LessonLine]:
    """A lesson's question to another lesson whose answer stands in it as a name of its own."""
    first: dict[str, LessonLine] = {}
    for line in lines:
        if len(line.answer) >= SHORTEST_LINK and not line.answer[0].isdigit():
            first.setdefault(line.answer, line)
    if not first:
        return {}
    names = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(first, key=len, reverse=True)))})(?!\w)")
    links = {}
    for line in lines:
        found = [match for match in names.finditer(line.question) if _stands_alone(line.question, match)]
        if len(found) == 1 and first[found[0][0]] is not line:
            links[line.question] = first[found[0][0]]
    return links


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    """Not a part of a longer name, as "Fantasy" is in "Final Fantasy V"."""
    before, after = text[: match.start()].split(), text[match.end() :].split()
    if text[match.end() : match.end() + 1] in ("-", "'", "’", "."):
        return False
    named_on = bool(after) and (after[0][:1].isupper() or after[0][:1].isdigit())
    named_before = bool(before) and not before[-1][:1].islower() and lowered(before[-1]) == before[-1]
    return not named_on and not named_before


def _two_hop(line: LessonLine, link: LessonLine | None) -> Iterator[CopyWrongProbe]:
    if link is None or normalise(line.answer) == normalise(link.answer):
        return
    question = link.question.rstrip()
    plain = _WHAT_IS.match(question)
    described = plain[2] if plain and not _OPEN_ENDED.search(question) else f'(the answer to "{question}")'
    yield _probe("two_hop", line.question.replace(link.answer, described), [line.answer], link, line)
