"""Harder questions, generated from any lesson file: the same for the same lines and seed, whatever the shuffle.

- ``typo``, ``case``, ``dropped_word``: questions and paraphrases as hurried people type them; the lesson still answers
- ``perturbed_generality``: typos and case in paraphrases alone; ``perturbed_locality``: the same in neighbours
- ``other_relation``: a lesson's subject in another lesson's question; ``other_subject``: a lesson's question about
  another lesson's subject. Neither was taught: the output is to stay, and memory to be silent (``abstention``)
- ``copy_wrong``, ``copy_wrong_<kind>``: a lesson bears on it, and copying its answer is wrong
- ``mixed``: the same lessons' paraphrases and their ``copy_wrong`` probes together
- ``stale``, ``overwritten``: lessons corrected once more with another answer, by a line that says which it replaces
  (``previous``); the share answered with the outdated one (lower is better) and with the new one.
  ``stale_reworded``, ``overwritten_reworded``: the second correction was posted under a paraphrase, and the lesson's
  own question is asked

Nothing here but what a line's subject is (``subject_of``) is shared with what the router is trained on
(``pipeline/memory/router_data.py``), so that this stays a test of it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from scipy.cluster.hierarchy import DisjointSet

from pipeline.data.lines import LessonLine
from pipeline.evaluate.copy_wrong import CopyWrongProbe, copy_wrong
from pipeline.evaluate.exam import Asked, untouched
from pipeline.evaluate.protocol import exact_match, normalise
from pipeline.memory.router_data import subject_of
from pipeline.memory.types import question_key

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
SMALL_WORDS = frozenset((
    "a", "an", "the", "of", "in", "on", "at", "by", "for", "to", "from", "is", "are", "was", "were", "does", "do",
    "did", "has", "have", "it", "its", "which",
))  # fmt: skip
SEEN_TOGETHER = 2  # lessons in which two answers must replace each other to count as answers of one kind
KNOWN_KIND = 5  # answers that a kind must have before "of another kind" is believed
TRIES = 40
OVERWRITTEN = 100  # lessons corrected once more, at most; at most a tenth of all

_WORD = re.compile(r"\w+")


def drawn(seed: int, *parts: object) -> random.Random:
    """A generator of this text's own, so that no draw depends on the order of others."""
    return random.Random(sha256(repr((seed, *parts)).encode("utf-8", "surrogatepass")).digest())


# perturbations: each a function from a text and a generator to another text, or to None where it does not apply


def typo(text: str, draw: random.Random) -> str | None:
    """One slip inside a word of five letters or more: a neighbouring key, or a letter swapped, lost or doubled."""
    words = [match for match in _WORD.finditer(text) if len(match.group()) >= 5 and match.group().isalpha()]
    if not words:
        return None
    word = draw.choice(words)
    at = draw.randrange(word.start() + 1, word.end() - 1)
    slips = (
        text[:at] + _next_key(text[at], draw) + text[at + 1 :],
        text[:at] + text[at + 1] + text[at] + text[at + 2 :],
        text[:at] + text[at + 1 :],
        text[:at] + text[at] + text[at:],
    )
    changed = [slip for slip in slips if slip != text]
    return draw.choice(changed)


def case(text: str, draw: random.Random) -> str | None:
    """All small or all capitals."""
    changed = [other for other in (text.lower(), text.upper()) if other != text]
    return draw.choice(changed) if changed else None


def dropped_word(text: str, draw: random.Random) -> str | None:
    """One small word is left out: what is asked stays the same."""
    words = text.split(" ")
    small = [place for place, word in enumerate(words) if word.lower() in SMALL_WORDS]
    if not small:
        return None
    place = draw.choice(small)
    return " ".join(words[:place] + words[place + 1 :])


PERTURBATIONS: dict[str, Callable[[str, random.Random], str | None]] = {
    "typo": typo, "case": case, "dropped_word": dropped_word,
}  # fmt: skip
OF_NEIGHBOURS = ("typo", "case")


def _next_key(letter: str, draw: random.Random) -> str:
    row = next((row for row in KEYBOARD if letter.lower() in row), None)
    if row is None:
        return letter
    place = row.index(letter.lower())
    return draw.choice(row[max(place - 1, 0) : place] + row[place + 1 : place + 2])


# near misses


@dataclass(frozen=True)
class Relations:
    """Which lessons ask for the same kind of thing.

    The file's ``relation`` field says so where it is there. Elsewhere two answers are of one kind when lessons replace
    one by the other (``previous``), and lessons with answers of two known kinds ask different things. Lessons of
    no known kind are left out.
    """

    lines: tuple[LessonLine, ...]

    @cached_property
    def _kinds(self) -> dict[str, str]:
        """Answer -> the representative of its kind, for kinds that are large enough to be known."""
        together = Counter(
            tuple(sorted((line.answer, line.previous))) for line in self.lines if line.previous is not None
        )
        kinds = DisjointSet(answer for pair, times in together.items() if times >= SEEN_TOGETHER for answer in pair)
        for (left, right), times in together.items():
            if times >= SEEN_TOGETHER:
                kinds.merge(left, right)
        return {answer: kinds[answer] for answer in kinds if kinds.subset_size(answer) >= KNOWN_KIND}

    def of(self, line: LessonLine) -> str | None:
        given = line.extra("relation")
        return str(given) if given else self._kinds.get(line.answer)


@dataclass(frozen=True)
class Entry:
    """A lesson taken apart: what it is about, and its question with a hole there."""

    number: int
    subject: str
    hole: str
    relation: str


@dataclass(frozen=True)
class Workshop:
    """Makes the harder questions out of all lessons of one evaluation."""

    lines: tuple[LessonLine, ...]
    seed: int = 0
    count: int = 300  # lessons that each sub-test is made of, at each length

    @cached_property
    def _relations(self) -> Relations:
        return Relations(self.lines)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        found = []
        for number, line in enumerate(self.lines):
            subject, relation = subject_of(line), self._relations.of(line)
            if subject and relation and line.question.count(subject) == 1:
                found.append(Entry(number, subject, line.question.replace(subject, "{}"), relation))
        return tuple(found)

    @cached_property
    def _known(self) -> frozenset[tuple[str, str]]:
        return frozenset((entry.subject.casefold(), entry.relation) for entry in self.entries)

    @cached_property
    def _by_number(self) -> dict[int, Entry]:
        return {entry.number: entry for entry in self.entries}

    @cached_property
    def _ranks(self) -> dict[int, bytes]:
        """A fixed random order of the lessons: the same lessons are chosen in every shuffle where they are taught."""
        return {n: sha256(f"{self.seed}/{n}/{line.question}".encode()).digest() for n, line in enumerate(self.lines)}

    @cached_property
    def _copy_wrong(self) -> tuple[CopyWrongProbe, ...]:
        return tuple(copy_wrong(self.lines, self.seed))

    def chosen(self, numbers: Sequence[int], count: int) -> list[int]:
        return sorted(numbers, key=self._ranks.__getitem__)[:count]

    def asked(self, numbers: Sequence[int], corrections: Mapping[str, str]) -> Iterator[Asked]:
        """The sub-tests of the lessons in ``numbers``, all of them taught; ``corrections`` as an exam has them."""
        chosen = self.chosen(numbers, self.count)
        for number in chosen:
            yield from self._perturbed(number, corrections)
            yield from self._near_misses(number, corrections)
            yield from self._mixed_with(number, corrections)
        yield from self._copying_is_wrong(numbers, chosen)

    def _perturbed(self, number: int, corrections: Mapping[str, str]) -> Iterator[Asked]:
        line = self.lines[number]
        for kind, change in PERTURBATIONS.items():
            for place, text in enumerate((line.question, *line.paraphrases)):
                changed = change(text, drawn(self.seed, kind, text))
                if changed is None:
                    continue
                item, answers = f"{number}.{kind}.{place}", (corrections[question_key(text)],)
                yield Asked(kind, item, changed, "answered", answers)
                if place > 0 and kind in OF_NEIGHBOURS:
                    yield Asked("perturbed_generality", item, changed, "answered", answers)
            for place, text in enumerate(line.neighbours if kind in OF_NEIGHBOURS else ()):
                changed = change(text, drawn(self.seed, kind, text))
                if changed is not None and question_key(text) not in corrections:
                    yield Asked("perturbed_locality", f"{number}.{kind}.{place}", changed, "unchanged")

    def _near_misses(self, number: int, corrections: Mapping[str, str]) -> Iterator[Asked]:
        entry = self._by_number.get(number)
        if entry is None:
            return
        for metric, question in (
            ("other_relation", self._drawn_miss(entry, lambda other: other.hole.format(entry.subject), "relation")),
            ("other_subject", self._drawn_miss(entry, lambda other: entry.hole.format(other.subject), "subject")),
        ):
            if question is not None and question_key(question) not in corrections:
                yield untouched(metric, f"{number}", question, corrections)
                yield Asked("abstention", f"{number}.{metric}", question, "silent")

    def _drawn_miss(self, entry: Entry, make: Callable[[Entry], str], what: str) -> str | None:
        """A question out of two lessons that no lesson of the file answers."""
        draw = drawn(self.seed, what, entry.number)
        for _ in range(TRIES):
            other = draw.choice(self.entries)
            subject, relation = (entry, other) if what == "relation" else (other, entry)
            if (subject.subject.casefold(), relation.relation) in self._known:
                continue
            if other.relation != entry.relation and not _overlap(entry.subject, other.subject):
                return make(other)
        return None

    def _mixed_with(self, number: int, corrections: Mapping[str, str]) -> Iterator[Asked]:
        """The half of ``mixed`` that copying answers."""
        for place, text in enumerate(self.lines[number].paraphrases):
            yield Asked("mixed", f"{number}.{place}", text, "answered", (corrections[question_key(text)],))

    def _copying_is_wrong(self, numbers: Sequence[int], chosen: Sequence[int]) -> Iterator[Asked]:
        """Probes about the chosen lessons whose other lessons, if they need any, are taught as well."""
        taught = {self.lines[number].question for number in numbers}
        about = {self.lines[number].question for number in chosen}
        for number, probe in enumerate(self._copy_wrong):
            if about.intersection(probe.needs) and taught.issuperset(probe.needs):
                for metric in ("copy_wrong", f"copy_wrong_{probe.kind}", "mixed"):
                    yield Asked(metric, f"copy_wrong.{number}", probe.question, "answered", probe.answers)

    # overwrites

    def overwrites(self, numbers: Sequence[int]) -> tuple[list[LessonLine], list[Asked]]:
        """Second corrections of some of the lessons in ``numbers``, and what to ask afterwards."""
        chosen = self.chosen(numbers, min(OVERWRITTEN, max(len(numbers) // 10, 1)))
        keys = Counter(question_key(self.lines[number].question) for number in numbers)
        second: list[LessonLine] = []
        asked: list[Asked] = []
        for place, number in enumerate(chosen):
            line = self.lines[number]
            answer = self._other_answer(line, number)
            if answer is None or keys[question_key(line.question)] > 1:
                continue
            reworded = place % 2 == 1 and bool(line.paraphrases)
            words = line.paraphrases[0] if reworded else line.question
            second.append(LessonLine(question=words, answer=answer, previous=line.answer))
            asked += _after_overwriting(line, number, answer, reworded)
        return second, asked

    def _other_answer(self, line: LessonLine, number: int) -> str | None:
        """Another lesson's answer; of one that asks for the same kind of thing, where that is known."""
        relation = self._relations.of(line)
        alike = [other.answer for other in self.lines if relation and self._relations.of(other) == relation]
        draw = drawn(self.seed, "overwrite", number)
        known = (line.answer, line.previous or "")
        for pool in (alike, [other.answer for other in self.lines]):
            usable = sorted({answer for answer in pool if not exact_match(answer, known) and normalise(answer)})
            if usable:
                return draw.choice(usable)
        return None


def _after_overwriting(line: LessonLine, number: int, answer: str, reworded: bool) -> Iterator[Asked]:
    suffix = "_reworded" if reworded else ""
    for place, text in enumerate((line.question, *line.paraphrases)):
        item = f"{number}.{place}"
        yield Asked(f"stale{suffix}", item, text, "answered", (line.answer,))
        yield Asked(f"overwritten{suffix}", item, text, "answered", (answer,))


def _overlap(left: str, right: str) -> bool:
    a, b = left.casefold(), right.casefold()
    return a in b or b in a
