"""What follows from lessons without a model: yes or no, more or less, a lesson's subject, the second of two steps.

A small model with the lesson in its prompt says "No" to nearly every question whether something is so. Where words
settle it, they are compared instead (English). A closed question is opened first: with the answer that it proposes
taken out, "Is Gitega the capital of Burundi?" becomes "Is what the capital of Burundi?", and the router says whether
the lesson answers *that*. Whatever is left over in a question and could change its answer leaves it to the other
strategies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.memory.features import WORD, nearest, stem, stems
from pipeline.memory.state import ANSWERED, NAMED, TAG, Evidence, Looked, form_of, is_yes_no, look
from pipeline.memory.tense import asks_earlier
from pipeline.memory.types import Inference, Reading, SlotWeight, Viewer

ALIKE = 0.75  # two words that are one with a typo or another ending: "hold", "holds"
ABOUT = 0.6  # a question with this share of a lesson's words is about its relation
SHARED = 0.5  # of a lesson's other words, where its subject is what is asked

# Words that leave open whether the proposed answer is claimed or denied, of what time, or that it is one of several.
_DOUBTFUL = re.compile(
    r"\b(?:not|never|no longer|\w+n['’]t|none|false|wrong|untrue|incorrect|except|besides|instead|rather|or|and|than|"
    r"before|after|until|till|since|first|last|next|only|former\w*|previous\w*|prior|preced\w+|predecessors?|used to|"
    r"stop\w*|ceased?|why|how)\b",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"\b(?:(?P<above>more than|over|above|higher than|greater than|larger than|later than|after)|"
    r"(?P<below>less than|fewer than|under|below|lower than|smaller than|earlier than|before)|"
    r"(?P<least>at least)|(?P<most>at most))\s+(?P<bound>\d[\d,]*(?:\.\d+)?)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_PLACED = re.compile(r"\b(in|on|at|by|for|from|of|with|to|near)\s+(?:the\s+)?$", re.IGNORECASE)
_PAST = re.compile(r"\b(?:was|were|did|had)\b", re.IGNORECASE)
_GAP = re.compile(r"__+")
_OTHER_ASKING = re.compile(r"^\W*(?:when|where|why|how|whose|who)\b", re.IGNORECASE)
_KIND = re.compile(r"\b(?:which|what)\s+(\w+)(?:['’]s)?", re.IGNORECASE)
_SMALL = frozenset((
    "a", "an", "the", "of", "in", "on", "at", "by", "for", "to", "from", "with", "as", "into", "that", "this", "these",
    "those", "there", "it", "its", "they", "their", "he", "she", "his", "her", "is", "are", "was", "were", "be", "been",
    "being", "am", "do", "does", "did", "has", "have", "had", "having", "can", "could", "will", "would", "should",
    "may", "might", "must", "what", "which", "who", "whom", "whose", "when", "where", "name", "named", "called",
    "become", "became", "go", "goes", "known", "now", "today", "still", "currently", "presently", "nowadays", "days",
    "indeed", "really", "actually", "true", "right", "correct", "answer", "fact", "fits", "gap", "following",
))  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """``text``: what follows if the first of ``lessons`` answers ``question``; ``sure``: that need not be asked."""

    text: str
    lessons: tuple[SlotWeight, ...]
    question: str = ""
    sure: bool = False

    def follows(self, reading: Reading, gate: float) -> bool:
        """Whether the lesson answers the open question, by a reading of it."""
        weights = {slot.lesson_id: slot.weight for slot in reading.slots}
        return weights.get(self.lessons[0].lesson_id, 0.0) > gate

    def inferred(self) -> Inference:
        return Inference(self.text, tuple(lesson.lesson_id for lesson in self.lessons))


class Reader(Protocol):
    """What is needed of a lesson memory."""

    def read(self, questions: Sequence[str], viewers: Sequence[Viewer]) -> list[Reading]: ...


def read_and_infer(memory: Reader, questions: Sequence[str], viewers: Sequence[Viewer], gate: float) -> list[Reading]:
    """As ``memory`` reads, with what follows; where an open question decides, that is read, too.

    ``gate``: the weight from which a lesson answers it (``memory.gate``).
    """
    readings = memory.read(questions, viewers)
    made = [opened(question, reading) for question, reading in zip(questions, readings, strict=True)]
    asked = {place: one.question for place, one in enumerate(made) if one and not one.sure}
    again = dict(zip(asked, memory.read(list(asked.values()), [viewers[place] for place in asked]), strict=True))
    return [
        replace(reading, inferred=one.inferred()) if one and (one.sure or one.follows(again[place], gate)) else reading
        for place, (reading, one) in enumerate(zip(readings, made, strict=True))
    ]


def opened(question: str, reading: Reading) -> Opened | None:
    """What may follow from what was read, and the open question on which it rests."""
    looked = look(question, reading)
    if not looked.near:
        return None
    form = form_of(question, (looked.bearing or looked.near)[0].slot)
    question = TAG.sub("?", question)
    if form == "yes_no":
        about = (lesson for lesson in looked.near if not is_yes_no(lesson.slot.question))
        return next(filter(None, (_closed(question, lesson) for lesson in about)), None)
    if form == "reversed":
        return _subject(question, [evidence.slot for evidence in looked.bearing if evidence.answered >= ANSWERED])
    return _second_step(question, looked)


# yes or no


def _closed(question: str, lead: Evidence) -> Opened | None:
    if lead.named < NAMED and lead.covered < ABOUT:
        return None
    if bound := _BOUND.search(question):
        return _compared(question, lead.slot, bound)
    if _doubtful(question, lead.slot):
        return None
    if place := _proposed(question, lead.slot, lead.slot.answer):
        return _open(question, lead, place, "Yes")
    if _PAST.search(question) and not _PAST.search(lead.slot.question):
        return None  # it may have been so
    if lead.slot.previous and (place := _proposed(question, lead.slot, lead.slot.previous)):
        return _open(question, lead, place, "No")
    return _another(question, lead)


def _another(question: str, lead: Evidence) -> Opened | None:
    """The question proposes a name or a number that the lesson does not have, and nothing else."""
    left = _left_over(question, lead.slot)
    if not left or not all(_names(question[start:end]) for start, end in left):
        return None
    place = left[0][0], left[-1][1]
    preposition = _PLACED.search(question[: place[0]])
    if preposition and not lead.slot.question.rstrip().endswith(f" {preposition[1]}"):
        return None  # it may say where or when, which the lesson does not
    inside = [span for span in _spans(question) if place[0] <= span[0] and span[1] <= place[1]]
    return _open(question, lead, place, "No") if inside == left else None


def _open(question: str, lead: Evidence, place: tuple[int, int], text: str) -> Opened | None:
    """Sure is what has all of its words from the lesson and the candidate at ``place``; another name or number in it
    may be a condition."""
    left = _left_over(question, lead.slot, place)
    if any(_names(_at(question, span)) for span in left):
        return None
    before = re.sub(r"(?i)\b(?:the|an?)\s+$", "", question[: place[0]])
    asking = "how many" if _NUMBER.fullmatch(question[place[0] : place[1]]) else "what"
    return Opened(text, (lead.slot,), f"{before}{asking}{question[place[1] :]}", not left and lead.covered >= ABOUT)


def _proposed(question: str, lesson: SlotWeight, candidate: str) -> tuple[int, int] | None:
    """Where the question has ``candidate`` once more than the lesson's own question does, as "room 7" has "7"."""
    places = _places(question, candidate)
    return places[0] if len(places) > len(_places(lesson.question, candidate)) else None


def _doubtful(question: str, lesson: SlotWeight) -> bool:
    told = lesson.question.casefold()
    return any(found.group().casefold() not in told for found in _DOUBTFUL.finditer(question))


def _compared(question: str, lesson: SlotWeight, bound: re.Match[str]) -> Opened | None:
    numbers = _NUMBER.findall(lesson.answer)
    if len(numbers) != 1:
        return None
    value, limit = _value(numbers[0]), _value(bound["bound"])
    so = {
        "above": value > limit, "below": value < limit, "least": value >= limit, "most": value <= limit,
    }  # fmt: skip
    asked = next(name for name in so if bound[name])
    left = f"{question[: bound.start()]}how many{question[bound.end() :]}"
    plain = question[: bound.start()].rsplit("?", 1)
    return Opened("Yes" if so[asked] else "No", (lesson,), f"{plain[0]}?" if len(plain) > 1 else left)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


# from the answer to the subject


def _subject(question: str, lessons: Sequence[SlotWeight]) -> Opened | None:
    """The name in a lesson's question that this question does not have, if it has most of the rest of it."""
    if _OTHER_ASKING.search(question):
        return None
    found = [(*named, lesson) for lesson in lessons if (named := _missing_name(question, lesson))]
    if not found:
        return None
    _, name, lesson = max(found, key=lambda one: one[0])
    return Opened(name, (lesson,), sure=True)


def _missing_name(question: str, lesson: SlotWeight) -> tuple[float, str] | None:
    """(the share of the lesson's other words that the question has, the name that it lacks)."""
    kinds = {stem(kind.casefold()) for kind in _KIND.findall(question)}
    if _doubtful(question, lesson) or any(_stem_at(question, s) not in kinds for s in _left_over(question, lesson)):
        return None
    told = [span for span in _spans(lesson.question) if not _is_small(_at(lesson.question, span))]
    words = [_stem_at(lesson.question, span) for span in told]
    found = nearest(words, stems(question))
    missing = [span for span, word in zip(told, words, strict=True) if found[word] < ALIKE]
    runs = _runs(lesson.question, [span for span in missing if _names(_at(lesson.question, span))] or missing)
    if len(runs) != 1:
        return None
    start, end = runs[0] if _GAP.search(question) else _widened(lesson.question, runs[0])
    others = [span for span in told if not start <= span[0] < end]
    share = sum(span not in missing for span in others) / (len(others) or 1)
    return (share, lesson.question[start:end]) if share >= SHARED else None


def _runs(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring spans as one; small words and commas may stand between them."""
    runs: list[tuple[int, int]] = []
    for start, end in spans:
        if runs and all(_is_small(word) for word in WORD.findall(text[runs[-1][1] : start])):
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs


def _widened(text: str, run: tuple[int, int]) -> tuple[int, int]:
    """With the names that stand directly beside it: "Beijing Daxing International" and "Airport"."""
    start, end = run
    for word in reversed([span for span in _spans(text) if span[1] <= start]):
        if not (_names(_at(text, word)) and text[word[1] : start] == " ") or _is_small(_at(text, word)):
            break
        start = word[0]
    for word in [span for span in _spans(text) if span[0] >= end]:
        if not (_names(_at(text, word)) and text[end : word[0]] == " "):
            break
        end = word[1]
    return start, end


# two steps


def _second_step(question: str, looked: Looked) -> Opened | None:
    """The answer of the lesson that is about the first one's answer."""
    if not looked.linked:
        return None
    first, second = looked.bearing[0].slot, looked.linked[0].slot
    if asks_earlier(question, second.question):
        return None
    return Opened(second.answer, (first, second), sure=True)


# words of a text by their places


def _spans(text: str) -> list[tuple[int, int]]:
    return [found.span() for found in WORD.finditer(text)]


def _at(text: str, span: tuple[int, int]) -> str:
    return text[span[0] : span[1]]


def _stem_at(text: str, span: tuple[int, int]) -> str:
    return stem(_at(text, span).casefold())


def _is_small(word: str) -> bool:
    return stem(word.casefold()) in _SMALL


def _names(word: str) -> bool:
    """Whether a word is written like a name or a number."""
    return word[:1].isupper() or any(map(str.isdigit, word))


def _places(text: str, candidate: str) -> list[tuple[int, int]]:
    """Where ``text`` has the words of ``candidate``, one after the other."""
    spans, wanted = _spans(text), stems(candidate)
    words, size = [_stem_at(text, span) for span in spans], len(wanted)
    starts = range(len(words) - size + 1 if wanted else 0)
    return [(spans[at][0], spans[at + size - 1][1]) for at in starts if words[at : at + size] == wanted]


def _left_over(question: str, lesson: SlotWeight, without: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """The words of ``question`` that neither the lesson nor ``without`` has, small ones apart."""
    known = stems(f"{lesson.question} {lesson.answer}")
    spans = [span for span in _spans(question) if not (without and without[0] <= span[0] < without[1])]
    spans = [span for span in spans if not _is_small(_at(question, span))]
    found = nearest([_stem_at(question, span) for span in spans], known)
    return [span for span in spans if found[_stem_at(question, span)] < ALIKE]
