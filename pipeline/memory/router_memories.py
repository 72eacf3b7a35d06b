"""Memories of several sizes to fit the router's heads on: lessons, what is asked about them, and what lies near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.data.lines import LessonLine
from pipeline.memory.features import Near, Pair, beside_rivals
from pipeline.memory.router_data import Fact, Generator, subject_of
from pipeline.memory.router_examples import RelationSwap, about, others_of
from pipeline.memory.segments import segments
from pipeline.model.encoder import TextEncoder, Vectors

SIZES = (1, 30, 400)  # of the small memories; one large memory holds everything there is
CANDIDATES = 16
OTHER_RELATION = 0.5  # of the lessons, that are asked for another relation of their subject, too
_APART = 1_000_000  # between the numbers of two memories' questions


@dataclass(frozen=True)
class Asked:
    """A question near one lesson of a memory, and whether that lesson answers it."""

    question: str
    lesson: int
    applies: bool


Known = tuple[str, list[str], list[str]]  # a lesson's question, questions that it answers, questions that it does not
Labelled = tuple[Pair, float]


def labelled_pairs(
    lines: Sequence[LessonLine],
    natural: Sequence[LessonLine],
    crowd: Sequence[LessonLine],
    encoder: TextEncoder,
    seed: int,
    count: int,
) -> list[Labelled]:
    """The candidates of every question in memories of ``SIZES``, and in one that ``crowd``'s lessons fill up.

    A question may happen to be answered by another lesson about the same subject, in other words: such pairs are left
    out.
    """
    subjects = {line.question: subject for line in (*lines, *natural, *crowd) if (subject := subject_of(line))}
    groups = []
    for size in SIZES:
        lessons, asked = simulated_memory(lines, natural, count, seed + size)
        groups.append(candidates(lessons, asked, size, subjects, encoder))
    lessons, asked = simulated_memory(lines, natural, 2 * count, seed)
    everything = list(dict.fromkeys([*lessons, *(line.question for line in crowd)]))
    groups.append(candidates(everything, asked, len(everything), subjects, encoder))
    return [
        (replace(pair, asking=pair.asking + number * _APART), label)
        for number, group in enumerate(groups)
        for pair, label in group
    ]


def simulated_memory(
    lines: Sequence[LessonLine], natural: Sequence[LessonLine], count: int, seed: int
) -> tuple[list[str], list[Asked]]:
    """Lessons, half from the lines (natural ones first) and half generated, and what is asked about them."""
    generator = Generator(lines, seed)
    written = generator.random.sample(list(natural), min(len(natural), count // 3))
    chosen = written + generator.random.sample(list(lines), min(len(lines), count // 2 - len(written)))
    facts: dict[Fact, None] = {}
    while len(facts) < count - len(chosen):
        facts[generator.fact()] = None
    other_relations = RelationSwap(chosen, seed)
    known = [_asked_of_line(line, other_relations, generator) for line in chosen]
    known += [_asked_of_fact(fact, facts, generator) for fact in facts]
    generator.random.shuffle(known)
    asked = [
        Asked(text, number, applies)
        for number, (_, right, wrong) in enumerate(known)
        for texts, applies in ((right, True), (wrong, False))
        for text in texts
    ]
    return [lesson for lesson, _, _ in known], asked


def _asked_of_line(line: LessonLine, other_relations: RelationSwap, generator: Generator) -> Known:
    right = [generator.noise(text) for text in (line.question, *line.paraphrases)]
    wrong = [*line.neighbours, *others_of(line)]
    if generator.random.random() < OTHER_RELATION:
        wrong += other_relations(line, 1)
    return line.question, right, [generator.noise(text) for text in wrong]


def _asked_of_fact(fact: Fact, facts: Mapping[Fact, None], generator: Generator) -> Known:
    known, *right = generator.wordings(fact, 3)
    others = [generator.other_subject(fact), generator.other_subject(fact)]
    if generator.random.random() < OTHER_RELATION:
        others.append(generator.other_relation(fact))
    return known, right, [generator.wordings(other, 1)[0] for other in others if other not in facts]


def candidates(
    lessons: list[str], asked: list[Asked], size: int, subjects: Mapping[str, str], encoder: TextEncoder
) -> list[Labelled]:
    """The nearest lessons of each question with 1 for the one that applies.

    The lessons stand in memories of ``size``; a question is put to the memory of the lesson that it is near.
    """
    keys = encoder.encode(lessons)
    parts = [segments(item.question) for item in asked]
    queries = np.split(encoder.encode([text for own in parts for text in own]), np.cumsum([len(own) for own in parts]))
    found: list[Labelled] = []
    for number, (item, own, vectors) in enumerate(zip(asked, parts, queries, strict=False)):
        start = item.lesson // size * size
        for pair in nearest_pairs(own, vectors @ keys[start : start + size].T, lessons[start : start + size]):
            itself = start + pair.lesson == item.lesson
            if itself or not about(item.question, subjects.get(pair.phrasing)):
                found.append((replace(pair, asking=number), float(itself and item.applies)))
    return found


def nearest_pairs(parts: Sequence[str], cosines: Vectors, lessons: Sequence[str]) -> list[Pair]:
    """The lessons nearest to any part of a question, each beside the part that it is nearest to; (parts, lessons)."""
    best, part = cosines.max(0), cosines.argmax(0)
    order = np.argsort(-best, kind="stable")[:CANDIDATES].tolist()
    return beside_rivals([Near(parts[part[row]], lessons[row], float(best[row]), row) for row in order], len(lessons))
