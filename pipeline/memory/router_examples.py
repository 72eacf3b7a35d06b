"""What the pair encoder learns from: pairs that ask the same thing, and near misses.

Four sources: lesson lines (the same fact, a neighbour, the nearest other lessons, another subject put into the same
words), *natural* lines written by hand, which show how freely people rephrase and name near misses of their own
(``neighbours``: other subject, ``others``: same subject, other relation), questions with answers, and generated ones.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from pipeline.data.lines import LessonLine, ProbeLine
from pipeline.memory.router_data import Generator, subject_of
from pipeline.memory.segments import segments
from pipeline.model.encoder import TextEncoder, Vectors

NEAREST = 4  # other lessons that a text is compared with, before those about its own subject are left out
STRAY = 0.08  # share of questions that get somebody else's sentence before them
HOLE = "{}"
COMMON = 10  # lessons from which a relation's answers are known
IN_COMMON = 0.1  # of the answers of the smaller of two relations, up to which they are two
SAME_ANSWER = 0.8  # cosine from which two questions with one answer count as one question

Example = tuple[str, str, float]  # question, phrasing, 1 if they ask the same


def line_examples(lines: Sequence[LessonLine], encoder: TextEncoder, seed: int) -> list[Example]:
    """Each lesson against its paraphrases, its neighbours, other subjects in its words, and the nearest lessons."""
    colour = Colour(lines, seed)
    subjects = [subject_of(line) for line in lines]
    swapped, other_relations = SubjectSwap(subjects, seed), RelationSwap(lines, seed)
    near = nearest_lessons(lines, subjects, encoder)
    examples: list[Example] = []
    for line, subject, others in zip(lines, subjects, near, strict=True):
        examples += [(colour(text), line.question, 1.0) for text in (line.question, *line.paraphrases)]
        examples += [(colour(line.question), text, 1.0) for text in line.paraphrases]
        for text in line.neighbours:
            known = colour.random.choice((line.question, *line.paraphrases))
            examples += [(colour(text), line.question, 0.0), (colour(line.question), text, 0.0), (text, known, 0.0)]
        examples += [(colour(text), lines[other].question, 0.0) for text, other in others]
        for text in (line.question, *line.paraphrases[:1]):
            examples += [(colour(other), line.question, 0.0) for other in swapped(text, subject)]
        for other in other_relations(line, 2):
            known = colour.random.choice((line.question, *line.paraphrases))
            examples += [(colour(other), line.question, 0.0), (colour(line.question), other, 0.0), (other, known, 0.0)]
    return examples


def natural_examples(lines: Sequence[LessonLine], encoder: TextEncoder, seed: int) -> list[Example]:
    """Every wording against the question and against one other wording, because a lesson may come in any wording."""
    colour = Colour([], seed)
    draw = colour.random
    near = nearest_lessons(lines, [None] * len(lines), encoder)
    examples: list[Example] = []
    for line, others in zip(lines, near, strict=True):
        wordings = [line.question, *line.paraphrases]
        misses = [*line.neighbours, *others_of(line)]
        for text in wordings:
            known = draw.choice([w for w in wordings if w != text] or wordings)
            examples += [(colour(text), line.question, 1.0), (colour(text), known, 1.0)]
        for text in misses:
            examples += [(colour(text), line.question, 0.0), (colour(text), draw.choice(wordings), 0.0)]
        examples += [(colour(text), lines[other].question, 0.0) for text, other in others]
    return examples


def others_of(line: LessonLine) -> list[str]:
    """Questions about the same subject that the lesson does not answer (a field of natural lines)."""
    return list(line.extra("others", ()))


def question_examples(probes: Sequence[ProbeLine], encoder: TextEncoder, seed: int) -> list[Example]:
    """Questions people asked: the nearest with an answer in common are one question, those with none in common two."""
    colour = Colour([], seed)
    answers = [{answer.casefold() for answer in probe.answers} for probe in probes]
    texts = [probe.question for probe in probes]
    vectors = encoder.encode(texts)
    cosines = _cosines(vectors, vectors)
    np.fill_diagonal(cosines, -1)
    examples: list[Example] = []
    for row, near in enumerate(_top(cosines, 3)):
        for other in near:
            same = bool(answers[row] & answers[other])
            if not same or cosines[row, other] >= SAME_ANSWER:
                examples.append((colour(texts[row]), texts[other], float(same)))
    return examples


def generated_examples(lines: Sequence[LessonLine], seed: int, count: int) -> list[Example]:
    """About 48 % the same question in other words, 40 % another subject, 12 % another relation of the subject.

    People ask about the same subject in words that no template foresees; many relation negatives made the router
    refuse those.
    """
    draw = random.Random(seed).random
    generator = Generator(lines, seed)
    examples: list[Example] = []
    while len(examples) < count:
        fact = generator.fact()
        asked, known = generator.wordings(fact, 2)
        examples.append((asked, known, 1.0))
        if draw() < 0.5:
            examples.append((known, asked, 1.0))
        others = [generator.other_subject(fact)] * (2 if draw() < 0.25 else 1)
        examples += [(generator.wordings(other, 1)[0], known, 0.0) for other in others]
        if draw() < 0.4:
            examples.append((generator.wordings(generator.other_relation(fact), 1)[0], known, 0.0))
    return examples[:count]


class Colour:
    """A question as it may come in: noise of typing, a stray sentence before it, or only the part that matters."""

    def __init__(self, lines: Sequence[LessonLine], seed: int) -> None:
        self._generator = Generator([], seed)
        self.random = self._generator.random
        self._stray = [part for line in lines for text in line.paraphrases for part in segments(text)[1:-1]]

    def __call__(self, text: str) -> str:
        parts = segments(text)
        if len(parts) > 1 and self.random.random() < 0.7:  # what the reading hands on where the last sentence is nearer
            text = parts[-1]
        elif self._stray and self.random.random() < STRAY:
            text = f"{self.random.choice(self._stray)} {text}"
        return self._generator.noise(text)


class SubjectSwap:
    """Other subjects in the same words: mostly one that shares a word of the name (Paul, Jesse McCartney)."""

    def __init__(self, subjects: Sequence[str | None], seed: int) -> None:
        self._names = sorted({subject for subject in subjects if subject})
        self._sharing: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            for word in name.split():
                self._sharing[word].append(name)
        self._random = random.Random(seed)

    def __call__(self, text: str, subject: str | None, count: int = 2) -> Iterator[str]:
        if not subject or subject not in text or len(self._names) < 2:
            return
        alike = [name for word in subject.split() for name in self._sharing.get(word, ()) if name != subject]
        for _ in range(count):
            name = self._random.choice(alike if alike and self._random.random() < 0.6 else self._names)
            if name not in subject and subject not in name:
                yield text.replace(subject, name)


class RelationSwap:
    """Other relations of a lesson's subject, in other lessons' words.

    The wordings of one lesson are one relation, and so are those of all lessons that share a wording with it. Relations
    that are rare, or have answers in common with the lesson's own, might be the same one in words that no lesson links:
    they are left out.
    """

    def __init__(self, lines: Sequence[LessonLine], seed: int) -> None:
        self._random = random.Random(seed)
        holes = [_holes(line) for line in lines]
        self._relations = DisjointSet(hole for own in holes for hole in own)
        for own in holes:
            for other in own[1:]:
                self._relations.merge(own[0], other)
        answers: dict[str, list[str]] = defaultdict(list)
        for line, own in zip(lines, holes, strict=True):
            if own:
                answers[self._relations[own[0]]].append(line.answer.casefold())
        self._answers = {relation: set(given) for relation, given in answers.items() if len(given) >= COMMON}
        self._wordings: dict[str, list[str]] = defaultdict(list)
        for hole in self._relations:
            self._wordings[self._relations[hole]].append(hole)

    def __call__(self, line: LessonLine, count: int) -> Iterator[str]:
        own = next((self._relations[hole] for hole in _holes(line) if hole in self._relations), None)
        if own not in self._answers:
            return
        others = [relation for relation in self._answers if self._apart(own, relation)]
        for relation in self._random.sample(others, min(count, len(others))):
            yield self._random.choice(self._wordings[relation]).replace(HOLE, str(subject_of(line)))

    def _apart(self, own: str, other: str) -> bool:
        mine, theirs = self._answers[own], self._answers[other]
        return own != other and len(mine & theirs) <= IN_COMMON * min(len(mine), len(theirs))


def _holes(line: LessonLine) -> list[str]:
    """The lesson's wordings, each without what stands before its last sentence, and with a hole for the subject."""
    subject = subject_of(line)
    last = [segments(text)[-1] for text in (line.question, *line.paraphrases)]
    return [text.replace(subject, HOLE) for text in last if subject and text.count(subject) == 1]


def nearest_lessons(
    lines: Sequence[LessonLine], subjects: Sequence[str | None], encoder: TextEncoder
) -> list[list[tuple[str, int]]]:
    """Per lesson: (one of its texts, the number of another lesson that lies near it and is about something else).

    A neighbour of one lesson may ask what another lesson of the file answers in other words; such pairs share their
    subject and are left out.
    """
    if len(lines) <= NEAREST:
        return [[] for _ in lines]
    keys = encoder.encode([line.question for line in lines])
    texts = [[line.paraphrases[0] if line.paraphrases else line.question, *line.neighbours[:1]] for line in lines]
    flat = [(row, text) for row, own in enumerate(texts) for text in own]
    cosines = _cosines(encoder.encode([text for _, text in flat]), keys)
    near: list[list[tuple[str, int]]] = [[] for _ in lines]
    for (row, text), found in zip(flat, _top(cosines, NEAREST), strict=True):
        others = [other for other in found if other != row and not about(text, subjects[other])]
        near[row] += [(text, other) for other in others[:2]]
    return near


def about(text: str, subject: str | None) -> bool:
    """Whether the subject is named in the text."""
    return bool(subject) and str(subject).casefold() in text.casefold()


def _cosines(left: Vectors, right: Vectors) -> Vectors:
    result: Vectors = left @ right.T
    return result


def _top(cosines: Vectors, count: int) -> list[list[int]]:
    """Per row the ``count`` columns with the largest values, largest first."""
    return [row[:count].tolist() for row in np.argsort(-cosines, axis=1, kind="stable")[:, :count]]
