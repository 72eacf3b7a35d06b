"""The state of a question: what a choice between strategies can be made from, in numbers that the answer logs.

The router's weights say whether a lesson *answers* the question. A lesson may bear on it all the same: "Is the capital
of Kazakhstan Almaty?" names the lesson's subject, "Astana is the capital of what?" its answer, and a question in two
steps names the subject of one lesson whose answer is the subject of another. A neighbour does none of these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from math import log

from pipeline.config import MemorySettings
from pipeline.memory.context import Form, Told
from pipeline.memory.features import WordTable, covered, nearest
from pipeline.memory.types import Reading, SlotWeight

STATE_VERSION = 1  # raise it whenever FEATURES or their meaning change: ratings of older states are not learned from
FEATURES = (
    "bias",
    "gate",  # log-odds of the weight on lessons over memory.gate, in units of 4, within 2
    "confident",
    "rivalry",  # how far the weight is spread over several lessons
    "cosine",  # of the nearest lesson
    "covered",  # share of the lesson's words, weighed by surprise, that the question has
    "named",  # whether the question has the lesson's most surprising word: its subject, mostly
    "answered",  # share of the lesson's answer that the question has
    "linked",  # a second lesson is about the answer of the first
    "yes_no",
    "compare",
    "reversed",  # the answer is given, and it is no yes/no question
    "belief",
    "length",  # log of the question's words over the lesson's, within 2
)

NEAREST = 8  # lessons that are looked at
APPLIES = 0.2  # weight from which a lesson bears on the question whatever its words
NAMED, COVERED = 0.75, 0.4  # a lesson's subject is named, and this share of its words is there
ANSWERED, NEAR = 0.9, 0.35  # a lesson's answer is named, and the question is this near to it
SHOWN = 3  # lessons that are worth their place in a prompt

_AUXILIARY = (
    r"(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would|should|isn't|aren't|wasn't|doesn't|didn't)"
)
TAG = re.compile(r",\s*(?:right|correct|\w+n['’]t (?:it|he|she|they|there)|is it not)\s*\?\s*$", re.IGNORECASE)
_ASKS_TRUTH = re.compile(r"\b(?:true or false|yes or no|is (?:it|this|that) (?:true|right|correct))\b", re.IGNORECASE)
_ASKS_FIRST = re.compile(rf"^{_AUXILIARY}\s(?!you\b)", re.IGNORECASE)
_ASKS_LATER = re.compile(rf"(?<!\b[A-Z])[.?!:]\s+{_AUXILIARY}\s(?!you\b)", re.IGNORECASE)
_SENTENCES = re.compile(r"[.?!]\s+[A-Z]")
_OFFERS = re.compile(r"(?<!\btrue )(?<!\byes )\bor\b(?! not\b)", re.IGNORECASE)
_COMPARE = re.compile(
    r"\b(?:before|after|earlier|later|since|until|by|more|less|fewer|larger|smaller|higher|lower|at least|at most)\b"
    r"[^.?!]*\d",
    re.IGNORECASE,
)

Words = dict[str, float]  # word to surprise


@dataclass(frozen=True)
class Evidence:
    """How a lesson's words and a question's meet."""

    slot: SlotWeight
    covered: float
    named: float
    answered: float

    @property
    def bears(self) -> bool:
        """Whether the lesson bears on the question."""
        about = self.named >= NAMED and self.covered >= COVERED
        given = self.answered >= ANSWERED and self.slot.cosine >= NEAR
        return self.slot.weight >= APPLIES or about or given

    @property
    def rank(self) -> float:
        return self.slot.weight + self.covered + self.slot.cosine + self.answered


@dataclass(frozen=True)
class Looked:
    """The lessons near a question, most relevant first; those that bear on it; the one about the first one's answer."""

    near: list[Evidence]
    bearing: list[Evidence]
    linked: list[Evidence]


def look(question: str, reading: Reading) -> Looked:
    near = _evidence(question, reading)
    bearing = [evidence for evidence in near if evidence.bears]
    return Looked(near, bearing, _linked(question, near, bearing))


def relevant(question: str, reading: Reading) -> list[SlotWeight]:
    """The lessons that bear on the question, the most relevant first, and those that are about their answers."""
    looked = look(question, reading)
    alone = [evidence for evidence in looked.bearing if evidence not in looked.linked]
    return [evidence.slot for evidence in (*alone[: SHOWN - len(looked.linked)], *looked.linked)]


def state_of(question: str, reading: Reading, settings: MemorySettings) -> tuple[float, ...]:
    """The numbers that FEATURES names; equal for equal questions and readings."""
    looked = look(question, reading)
    lesson = (looked.bearing or looked.near)[0]
    form = form_of(question, lesson.slot)
    weight = lesson.slot.weight
    values = {
        "bias": 1.0,
        "gate": _within((log_odds(reading.gate) - log_odds(settings.gate)) / 4, 2.0),
        "confident": float(reading.gate > settings.gate),
        "rivalry": 1.0 - weight / reading.gate if reading.gate > 0 else 0.0,
        "cosine": max(evidence.slot.cosine for evidence in looked.near),
        "covered": lesson.covered,
        "named": lesson.named,
        "answered": lesson.answered,
        "linked": float(bool(looked.linked)),
        "yes_no": float(form == "yes_no"),
        "compare": float(form == "yes_no" and bool(_COMPARE.search(question))),
        "reversed": float(form == "reversed"),
        "belief": lesson.slot.belief,
        "length": _within(log((1 + len(question.split())) / (1 + len(lesson.slot.question.split()))), 2.0),
    }
    return tuple(round(values[name], 4) for name in FEATURES)


def form_of(question: str, lesson: Told) -> Form:
    """How the question turns the lesson round: asks whether it is so, asks for its subject, or neither.

    One that offers the lesson's answer beside another ("Gitega or Bujumbura?") does neither.
    """
    table = _table()
    answer, asked, own = map(table.words, (lesson.answer, question, lesson.question))
    named = _covered(answer, asked) >= ANSWERED > _covered(answer, own)  # "code 7" is in "the code of room 7" anyway
    if named and _OFFERS.search(question):
        return "plain"
    if is_yes_no(question) and not is_yes_no(lesson.question):
        return "yes_no"
    return "reversed" if named else "plain"


def is_yes_no(question: str) -> bool:
    """Whether a sentence of the (English) question asks for yes or no. "Could you tell me …" does not.

    Nor does a text to complete: "Mario Bros. is developed by".
    """
    text = question.strip()
    if not text.endswith("?"):
        return bool(_ASKS_TRUTH.search(text) or (_ASKS_FIRST.search(text) and not _SENTENCES.search(text)))
    return any(pattern.search(text) for pattern in (_ASKS_TRUTH, _ASKS_FIRST, _ASKS_LATER, TAG))


def names_subject(question: str, lesson: str) -> bool:
    """Whether a question has the most surprising word of a lesson's own question, a typo counting as the word."""
    known = _table().words(lesson)
    return _has(_rarest(known), _table().words(question)) >= NAMED


def log_odds(share: float) -> float:
    """log(p / (1 - p)), held within 20 either way."""
    if share <= 0 or share >= 1:
        return 20.0 if share >= 1 else -20.0
    return _within(log(share / (1 - share)), 20.0)


def _evidence(question: str, reading: Reading) -> list[Evidence]:
    """The lessons with weight and the nearest ones, most relevant first."""
    table = _table()
    slots = sorted(reading.slots, key=lambda slot: (-slot.weight, -slot.cosine, slot.lesson_id))[:NEAREST]
    told = [(slot, table.words(slot.question), table.words(slot.answer)) for slot in slots]
    every = dict.fromkeys(word for _, known, answer in told for word in (*known, *answer))
    alike = nearest(every, table.words(question))
    found = [
        Evidence(slot, covered(known, alike), alike.get(_rarest(known), 0.0), covered(answer, alike))
        for slot, known, answer in told
    ]
    return sorted(found, key=lambda evidence: (-evidence.bears, -evidence.rank, evidence.slot.lesson_id))


def _rarest(words: Words) -> str:
    return max(words, key=lambda word: words[word], default="")


def _linked(question: str, near: list[Evidence], bearing: list[Evidence]) -> list[Evidence]:
    """The lesson about the answer of the most relevant one, if the question has its other words and not that answer."""
    if not bearing or bearing[0].answered >= ANSWERED:
        return []
    first, asked = bearing[0], _table().words(question)
    answer = _table().words(first.slot.answer)
    about = {evidence.slot.lesson_id: _table().words(evidence.slot.question) for evidence in near if evidence != first}
    return [
        evidence
        for evidence in near
        if (words := about.get(evidence.slot.lesson_id))
        and all(word in words for word in answer)
        and _covered(words, {**asked, **answer}) >= NAMED
    ][:1]


def _covered(words: Words, others: Words) -> float:
    """The share of the surprise of ``words`` that ``others`` have too, a typo counting in part."""
    return covered(words, nearest(words, others))


def _has(word: str, others: Words) -> float:
    return nearest([word], others)[word]


def _within(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))


@lru_cache(maxsize=1)
def _table() -> WordTable:
    """Words by the default encoder's pieces, whatever encoder the memory uses: it is a table of rarity only."""
    from transformers import AutoTokenizer

    from pipeline.model.encoder import weights_location

    tokenizer = AutoTokenizer.from_pretrained(weights_location("package:minilm"))
    return WordTable(lambda word: tokenizer.encode(word, add_special_tokens=False) or [0])
