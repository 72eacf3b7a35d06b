"""Equation 3 on the slots: b <- b + alpha * trust * (onehot(answer) - b), as a fold of ordered events.

The fold is pure and touches no clock and no random number, so replaying the log gives the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config import MemorySettings
from pipeline.data.lines import LessonLine
from pipeline.feedback.records import Event
from pipeline.memory.types import Lesson, question_key

# What a teacher's word counts against askers' later evidence: more than ten independent askers overturn it.
TAUGHT_SUPPORT = 10.0
# What the model's own answer counts where only askers have spoken: a third agreeing asker makes the lesson everybody's.
PRIOR_SUPPORT = 2.0

Beliefs = dict[str, float]


@dataclass(frozen=True)
class Vote:
    """One source's standing statement about one slot: for (value 1) or against (value -1) an answer."""

    source: str
    answer: str
    value: int
    trust: float


@dataclass(frozen=True)
class Ledger:
    """The evidence behind one slot's beliefs: where it started, and one vote per source since."""

    base: Beliefs = field(default_factory=dict)
    base_support: float = PRIOR_SUPPORT
    votes: tuple[Vote, ...] = ()
    beliefs: Beliefs = field(default_factory=dict)

    def add(self, vote: Vote, alpha_min: float) -> Ledger:
        """Count a vote; a source that repeats itself adds nothing, one that changes its mind is counted anew."""
        if vote in self.votes:
            return self
        kept = tuple(old for old in self.votes if old.source != vote.source)
        if len(kept) < len(self.votes):
            rewound = replace(self, votes=(), beliefs=dict(self.base))
            for old in kept:
                rewound = rewound._step(old, alpha_min)
            return rewound._step(vote, alpha_min)
        return self._step(vote, alpha_min)

    def _step(self, vote: Vote, alpha_min: float) -> Ledger:
        support = self.base_support + sum(old.trust for old in self.votes)
        alpha = max(alpha_min, vote.trust / (support + vote.trust))
        return replace(self, votes=(*self.votes, vote), beliefs=moved(self.beliefs, vote, alpha))


def moved(beliefs: Beliefs, vote: Vote, alpha: float) -> Beliefs:
    """The delta rule on one slot. A vote against an answer moves that answer's belief towards 0 and no other's."""
    step = min(1.0, alpha * min(1.0, vote.trust))
    if vote.value < 0:
        return {answer: b - step * b if answer == vote.answer else b for answer, b in beliefs.items()}
    answers = dict.fromkeys((*beliefs, vote.answer))
    return {answer: (b := beliefs.get(answer, 0.0)) + step * ((answer == vote.answer) - b) for answer in answers}


def born(answer: str) -> Ledger:
    """A slot that is right at once: belief 1 in its answer."""
    return Ledger(base={answer: 1.0}, base_support=TAUGHT_SUPPORT, beliefs={answer: 1.0})


@dataclass(frozen=True)
class Slot:
    """A lesson with the evidence that its beliefs come from."""

    lesson: Lesson
    ledger: Ledger


def slot_id(tenant: str, scope: str, scope_id: str, question: str) -> str:
    """The identity of the slot for a question in a scope."""
    text = "|".join((tenant, scope, scope_id, question_key(question)))
    return "les_" + hashlib.sha256(text.encode()).hexdigest()[:24]


def taught_event(line: LessonLine, seq: int) -> Event:
    """A lesson line as a teacher posts it, question and answer alone: its paraphrases are what a measurement asks."""
    body: dict[str, Any] = {
        "op": "correct",
        "lesson_id": slot_id("default", "global", "", line.question),
        "question": line.question,
        "answer": line.answer,
        "previous": line.previous,
        "paraphrases": [],
        "date": line.date,
    }
    return Event(kind="lesson", body=body, source="evaluate", role="teach", seq=seq)


class Fold:
    """The slots after the events seen so far. ``step`` returns the ids of the slots that an event changed."""

    def __init__(self, settings: MemorySettings | None = None) -> None:
        self.settings = settings or MemorySettings()
        self.slots: dict[str, Slot] = {}
        self._by_question: dict[tuple[str, str], str] = {}  # (tenant, question key) -> global slot

    def step(self, event: Event) -> set[str]:
        if event.kind != "lesson":
            return set()
        operation = {"correct": self._correct, "rate": self._rate, "retract": self._retract}[event.body["op"]]
        return operation(event)

    def put(self, slot: Slot) -> str:
        lesson = slot.lesson
        self.slots[lesson.lesson_id] = slot
        if lesson.scope not in ("user", "session"):
            self._by_question[lesson.tenant, question_key(lesson.question)] = lesson.lesson_id
        return lesson.lesson_id

    def drop(self, lesson_id: str) -> str:
        lesson = self.slots.pop(lesson_id).lesson
        key = (lesson.tenant, question_key(lesson.question))
        if self._by_question.get(key) == lesson_id:
            del self._by_question[key]
        return lesson_id

    def _named(self, event: Event) -> Slot | None:
        """The slot that the event names, where the event's tenant owns it and its source may touch it."""
        slot = self.slots.get(event.body["lesson_id"])
        if slot is None or slot.lesson.tenant != event.tenant:
            return None
        private_of_another = _private(slot.lesson) and event.role == "ask" and not _owns(event, slot.lesson)
        return None if private_of_another else slot

    def _correct(self, event: Event) -> set[str]:
        named = self._named(event)
        if named is None and event.body["lesson_id"] in self.slots:
            return set()  # another tenant's or another user's slot
        if event.role != "ask":
            return self._supersede(event, named)
        if named is not None and _private(named.lesson):
            return self._supersede(event, named) | self._evidence(event, None)
        return self._own_lesson(event, named) | self._evidence(event, named)

    def _supersede(self, event: Event, named: Slot | None) -> set[str]:
        """alpha * trust = 1: the slot is born again with belief 1 in the new answer."""
        if named is not None:
            return {self.put(Slot(_changed(named.lesson, event), born(event.body["answer"])))}
        fresh = _new_lesson(event, event.body["lesson_id"], event.scope, event.scope_id)
        changed = set()
        twin = None if _private(fresh) else self._global_twin(event)
        if twin is not None:  # the same question known under another id, from askers' evidence say
            changed.add(self.drop(twin.lesson.lesson_id))
        return changed | {self.put(Slot(fresh, born(fresh.answer)))}

    def _own_lesson(self, event: Event, corrected: Slot | None) -> set[str]:
        """An asker's correction is right at once in the asker's own scope."""
        scope = event.scope if event.scope in ("user", "session") else "user"
        owner = event.scope_id or event.source
        if corrected is None:
            lesson = _new_lesson(event, event.body["lesson_id"], scope, owner)
        else:
            old = corrected.lesson
            own_id = slot_id(event.tenant, scope, owner, old.question)
            lesson = replace(_changed(old, event), lesson_id=own_id, scope=scope, scope_id=owner, first_seq=event.seq)
        return {self.put(Slot(lesson, born(lesson.answer)))}

    def _evidence(self, event: Event, corrected: Slot | None) -> set[str]:
        """An asker's correction is evidence for the global slot of the same question."""
        slot = corrected or self._global_twin(event)
        if slot is None:
            own_id = slot_id(event.tenant, "global", "", event.body["question"])
            slot = Slot(_new_lesson(event, own_id, "global", ""), Ledger())
        return {self._vote(slot, event, Vote(event.source, event.body["answer"], 1, self._trust(event)))}

    def _rate(self, event: Event) -> set[str]:
        """A rating in [-1, 1] moves the belief in the answer that it rates, where that answer is a candidate."""
        slot = self._named(event)
        value, answer = float(event.body.get("value") or 0), event.body.get("answer", "")
        if slot is None or not value or answer not in slot.lesson.beliefs:
            return set()
        if _private(slot.lesson) and _owns(event, slot.lesson):
            ledger = born(answer) if value > 0 else Ledger()
            return {self.put(Slot(replace(slot.lesson, beliefs=ledger.beliefs, last_seq=event.seq), ledger))}
        vote = Vote(event.source, answer, 1 if value > 0 else -1, self._trust(event) * abs(value))
        return {self._vote(slot, event, vote)}

    def _retract(self, event: Event) -> set[str]:
        slot = self._named(event)
        if slot is None or (event.role == "ask" and not _private(slot.lesson)):
            return set()
        return {self.drop(slot.lesson.lesson_id)}

    def _vote(self, slot: Slot, event: Event, vote: Vote) -> str:
        ledger = slot.ledger.add(vote, self.settings.alpha_min)
        held = slot.lesson.answer  # the incumbent keeps a tie
        best = max(ledger.beliefs, key=lambda answer: (ledger.beliefs[answer], answer == held), default=held)
        lesson = replace(slot.lesson, answer=best, beliefs=ledger.beliefs, last_seq=event.seq)
        return self.put(Slot(lesson, ledger))

    def _global_twin(self, event: Event) -> Slot | None:
        found = self._by_question.get((event.tenant, question_key(event.body["question"])))
        return self.slots[found] if found else None

    def _trust(self, event: Event) -> float:
        return self.settings.trust.get(event.role, 1.0)


def _private(lesson: Lesson) -> bool:
    return lesson.scope in ("user", "session")


def _owns(event: Event, lesson: Lesson) -> bool:
    return lesson.scope_id in (event.scope_id, event.source)


def _new_lesson(event: Event, lesson_id: str, scope: str, scope_id: str) -> Lesson:
    body = event.body
    return Lesson(
        lesson_id=lesson_id,
        question=body["question"],
        answer=body["answer"],
        beliefs={body["answer"]: 1.0},
        previous=body.get("previous"),
        paraphrases=tuple(body.get("paraphrases") or ()),
        tenant=event.tenant,
        scope=scope,
        scope_id=scope_id,
        source=event.source,
        role=event.role,
        first_seq=event.seq,
        last_seq=event.seq,
        date=body.get("date"),
    )


def _changed(lesson: Lesson, event: Event) -> Lesson:
    """The lesson with a new answer; the wording that was corrected becomes one of its phrasings."""
    fresh = _new_lesson(event, lesson.lesson_id, lesson.scope, lesson.scope_id)
    phrasings = dict.fromkeys((*lesson.phrasings, fresh.question, *fresh.paraphrases))
    del phrasings[lesson.question]
    previous = fresh.previous or (lesson.answer if lesson.answer != fresh.answer else lesson.previous)
    return replace(
        fresh,
        question=lesson.question,
        paraphrases=tuple(phrasings),
        previous=previous,
        first_seq=lesson.first_seq,
        date=fresh.date or lesson.date,
    )


def fold(events: Iterable[Event], settings: MemorySettings | None = None) -> dict[str, Lesson]:
    """The lessons after ``events`` (in the order of ``seq``), without an encoder: what the update cycle trains on."""
    state = Fold(settings)
    for event in events:
        state.step(event)
    return {lesson_id: slot.lesson for lesson_id, slot in state.slots.items()}
