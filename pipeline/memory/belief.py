"""The fold of ordered events into slots: who may change what, and whose word counts how much.

The arithmetic of a slot's beliefs (equation 3) stands in ``ledger.py``, that of a source's trust in ``trust.py``. The
fold is pure and touches no clock and no random number, so replaying the log gives the same bits.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipeline.config import MemorySettings
from pipeline.data.lines import LessonLine
from pipeline.feedback.records import ACCEPTED, HELD, Event, NewEvent
from pipeline.memory.ledger import Ledger, Vote, born
from pipeline.memory.trust import Sources
from pipeline.memory.types import NARROWER, Evidence, Explanation, Lesson, moment, question_key

SHARED = ("tenant", "global")


class Slot:
    """A lesson and the evidence that its beliefs come from.

    ``ledger`` is ``None`` while nobody has voted since the slot was born: belief 1 in its answer, as nearly all are.
    ``header`` is the lesson as of its last event, whose answer and beliefs may be older than the ledger's; ``lesson``
    brings them up to date, so that a run of votes costs one count.
    """

    __slots__ = ("_stale", "header", "ledger")

    def __init__(self, header: Lesson, ledger: Ledger | None = None) -> None:
        self.header = header
        self.ledger = ledger
        self._stale = ledger is not None

    @property
    def lesson(self) -> Lesson:
        if self._stale and self.ledger is not None:
            best = self.ledger.best
            answer = self.header.answer if best is None else best
            self.header = replace(self.header, answer=answer, beliefs=self.ledger.beliefs)
            self._stale = False
        return self.header

    def voted(self, ledger: Ledger, event: Event) -> Slot:
        return Slot(replace(self.header, last_seq=event.seq, last_time=event.time), ledger)


def slot_id(tenant: str, scope: str, scope_id: str, question: str) -> str:
    """The identity of the slot for a question in a scope."""
    text = "|".join((tenant, scope, scope_id, question_key(question)))
    return "les_" + hashlib.sha256(text.encode()).hexdigest()[:24]


def evidence_for(event: NewEvent) -> tuple[str, ...]:
    """The slots for everybody, of which the first that there is takes an asker's own correction as evidence.

    The event itself names the asker's own slot. One that corrects an answer out of a shared lesson names that lesson.
    """
    body = event.body
    if event.kind != "lesson" or event.role != "ask" or body["op"] != "correct" or HELD in body:
        return ()
    own = slot_id(event.tenant, event.scope, event.scope_id, body["question"])
    return _shared_ids(event.tenant, body["question"]) if body["lesson_id"] == own else ()


def taught_event(line: LessonLine, seq: int, replaces: Lesson | None = None) -> Event:
    """A lesson line as a teacher posts it, question and answer alone: its paraphrases are what a measurement asks."""
    own = slot_id("default", "global", "", line.question)
    body: dict[str, Any] = {
        "op": "correct",
        "lesson_id": own if replaces is None else replaces.lesson_id,
        "question": line.question,
        "answer": line.answer,
        "previous": line.previous,
        "paraphrases": [],
        "date": line.date,
        "expires": line.expires,
    }
    return Event(kind="lesson", body=body, source="evaluate", role="teach", seq=seq)


class Fold:
    """The slots after the events seen so far. ``step`` returns the ids of the slots that an event changed."""

    def __init__(self, settings: MemorySettings | None = None) -> None:
        self.settings = settings or MemorySettings()
        self.slots: dict[str, Slot] = {}
        self.sources = Sources(self.settings.trust_prior)
        # (tenant, question key) -> a slot for everybody whose id says another question, or was made elsewhere
        self.aliases: dict[tuple[str, str], str] = {}

    def step(self, event: Event) -> set[str]:
        if event.kind != "lesson":
            return set()
        operations = {
            "correct": self._correct, "rate": self._rate, "retract": self._retract, "expire": self._expire,
        }  # fmt: skip
        return operations[event.body["op"]](event)

    def put(self, slot: Slot) -> str:
        """The slots stand in the order of their last change."""
        lesson = slot.header
        self.slots.pop(lesson.lesson_id, None)
        self.slots[lesson.lesson_id] = slot
        if not lesson.private and lesson.lesson_id not in _shared_ids(lesson.tenant, lesson.question):
            self.aliases[lesson.tenant, question_key(lesson.question)] = lesson.lesson_id
        return lesson.lesson_id

    def drop(self, lesson_id: str) -> str:
        lesson = self.slots.pop(lesson_id).header
        key = (lesson.tenant, question_key(lesson.question))
        if self.aliases.get(key) == lesson_id:
            del self.aliases[key]
        return lesson_id

    def explain(self, lesson_id: str) -> Explanation | None:
        """Every step of a slot's beliefs that counts, in order."""
        slot = self.slots.get(lesson_id)
        if slot is None:
            return None
        lesson, ledger = slot.lesson, self._ledger(slot)
        birth = [Evidence(lesson.born_seq, lesson.source, *_only(ledger.base), 1.0, 1.0, ledger.base)]
        votes = [
            Evidence(s.vote.seq, s.vote.source, s.vote.answer, s.vote.value, s.vote.trust, s.alpha, s.beliefs)
            for s in ledger.steps()
        ]
        return Explanation(lesson, (*(birth if ledger.base else []), *votes))

    def _named(self, event: Event) -> Slot | None:
        """The slot that the event names, where the event's tenant owns it and its source may touch it."""
        slot = self.slots.get(event.body["lesson_id"])
        if slot is None or slot.header.tenant != event.tenant:
            return None
        private_of_another = slot.header.private and event.role == "ask" and not _owns(event, slot.header)
        return None if private_of_another else slot

    def _correct(self, event: Event) -> set[str]:
        named = self._named(event)
        if named is None and event.body["lesson_id"] in self.slots:
            return set()  # another tenant's or another user's slot
        if event.role != "ask":
            return self._supersede(event, named)
        evidence = None if named is not None and named.header.private else named
        if event.body.get(ACCEPTED):  # held back at first: the asker's own lesson is there, and may be newer by now
            return self._evidence(event, evidence)
        own = self._own(event, named)
        return own if HELD in event.body else own | self._evidence(event, evidence)

    def _own(self, event: Event, named: Slot | None) -> set[str]:
        """What an asker's correction makes of the asker's own lesson."""
        if named is None or not named.header.private:
            return self._own_lesson(event, named)
        narrower = NARROWER.get(event.scope, 0) > NARROWER[named.header.scope]
        return self._own_lesson(event, named) if narrower else self._supersede(event, named)

    def _supersede(self, event: Event, named: Slot | None) -> set[str]:
        """alpha * trust = 1: the slot is born again with belief 1 in the new answer."""
        if named is not None:
            self._settle(named, event)
            return {self.put(Slot(_changed(named.lesson, event, self._trust(event))))}
        fresh = _new_lesson(event, event.body["lesson_id"], event.scope, event.scope_id, self._trust(event))
        changed = set()
        twin = None if fresh.private else self._shared_twin(event)
        if twin is not None:  # the same question known under another id: from askers' evidence, or in another scope
            self._settle(twin, event)
            changed.add(self.drop(twin.header.lesson_id))
        return changed | {self.put(Slot(fresh))}

    def _settle(self, slot: Slot, event: Event) -> None:
        """A teacher's word judges the votes that stood before it."""
        if slot.ledger is not None and not slot.header.private:
            answer = slot.ledger.candidate(event.body["answer"]) or event.body["answer"]
            self.sources.judge(event.tenant, slot.ledger.votes.values(), answer, event.source)

    def _own_lesson(self, event: Event, corrected: Slot | None) -> set[str]:
        """An asker's correction is right at once in the asker's own scope."""
        scope = event.scope if event.scope in NARROWER else "user"
        owner, trust = event.scope_id or event.source, self._trust(event)
        if corrected is None:
            lesson = _new_lesson(event, event.body["lesson_id"], scope, owner, trust)
        else:
            old = corrected.lesson
            own_id = slot_id(event.tenant, scope, owner, old.question)
            changed = _changed(old, event, trust)
            lesson = replace(
                changed, lesson_id=own_id, scope=scope, scope_id=owner, first_seq=event.seq, first_time=event.time
            )
        return {self.put(Slot(lesson))}

    def _evidence(self, event: Event, corrected: Slot | None) -> set[str]:
        """An asker's correction is evidence for everybody's slot of the same question.

        Evidence after a lesson has expired is about another time: it starts a slot of its own.
        """
        slot = corrected or self._shared_twin(event)
        if slot is None or slot.header.expired(event.time):
            lesson_id = slot_id(event.tenant, "global", "", event.body["question"])
            fresh = _new_lesson(event, lesson_id, "global", "", self._trust(event))
            if slot is not None:
                old = slot.header
                fresh = replace(fresh, lesson_id=old.lesson_id, scope=old.scope, question=old.question)
            slot = Slot(replace(fresh, beliefs={}), Ledger(alpha_min=self.settings.alpha_min))
        return self._vote(slot, event, event.body["answer"], 1.0)

    def _rate(self, event: Event) -> set[str]:
        """A rating in [-1, 1] moves the belief in the answer that it rates, where that answer is a candidate."""
        slot, value = self._named(event), float(event.body.get("value") or 0)
        if slot is None or not value:
            return set()
        answer = self._ledger(slot).candidate(event.body.get("answer", ""))
        if answer is None:
            return set()
        if slot.header.private and _owns(event, slot.header):
            if event.body.get(ACCEPTED):
                return set()
            beliefs = {answer: 1.0} if value > 0 else {}
            rated = replace(slot.lesson, answer=answer, beliefs=beliefs, last_seq=event.seq, last_time=event.time)
            return {self.put(Slot(rated, None if beliefs else Ledger(alpha_min=self.settings.alpha_min)))}
        if HELD in event.body:
            return set()
        return self._vote(slot, event, answer, value)

    def _retract(self, event: Event) -> set[str]:
        if event.body.get("erased"):  # what the erased had said may have judged others: it is all told again
            self.sources.forget(event.tenant)
        slot = self._governed(event)
        return set() if slot is None else {self.drop(slot.header.lesson_id)}

    def _expire(self, event: Event) -> set[str]:
        """Give a lesson an end, or none (``expires: null``). Whether that is past is for the reader to say."""
        slot = self._governed(event)
        if slot is None:
            return set()
        changed = replace(slot.header, expires=_expiry(event), last_seq=event.seq, last_time=event.time)
        return {self.put(Slot(changed, slot.ledger))}

    def _governed(self, event: Event) -> Slot | None:
        """The slot that the event names, where its source may take it away: a teacher any, an asker the own ones."""
        slot = self._named(event)
        return None if slot is None or (event.role == "ask" and not slot.header.private) else slot

    def _vote(self, slot: Slot, event: Event, answer: str, value: float) -> set[str]:
        ledger = self._ledger(slot)
        vote = Vote(event.source, ledger.candidate(answer) or answer, value, self._trust(event), event.seq)
        if not ledger.add(vote):
            return set()
        settled = ledger.newly_settled()
        if settled is not None:
            self.sources.judge(event.tenant, ledger.votes.values(), settled, event.source)
        return {self.put(slot.voted(ledger, event))}

    def _ledger(self, slot: Slot) -> Ledger:
        return born(slot.lesson.answer, self.settings.alpha_min) if slot.ledger is None else slot.ledger

    def _shared_twin(self, event: Event) -> Slot | None:
        """The slot that everybody in the tenant reads for this question."""
        question = event.body["question"]
        ids = (*_shared_ids(event.tenant, question), self.aliases.get((event.tenant, question_key(question))))
        found = (self.slots.get(lesson_id) for lesson_id in ids if lesson_id)
        return next((slot for slot in found if slot is not None and not slot.header.private), None)

    def _trust(self, event: Event) -> float:
        """The role's trust; an asker's is scaled by what became of the asker's earlier votes."""
        trust = self.settings.trust.get(event.role, 1.0)
        return trust * self.sources.multiplier(event.tenant, event.source) if event.role == "ask" else trust


def _owns(event: Event, lesson: Lesson) -> bool:
    return lesson.scope_id in (event.scope_id, event.source)


def _only(base: dict[str, float]) -> tuple[str, float]:
    return next(iter(base.items()), ("", 0.0))


def _shared_ids(tenant: str, question: str) -> tuple[str, ...]:
    return tuple(slot_id(tenant, scope, "", question) for scope in SHARED)


def _expiry(event: Event) -> str | None:
    expires = event.body.get("expires")
    return None if expires is None else moment(expires)


def _new_lesson(event: Event, lesson_id: str, scope: str, scope_id: str, trust: float) -> Lesson:
    body = event.body
    return Lesson(
        lesson_id=lesson_id,
        question=body["question"],
        answer=body["answer"],
        beliefs={body["answer"]: 1.0},
        previous=body.get("previous"),
        paraphrases=tuple(body.get("paraphrases") or ()),
        tenant=sys.intern(event.tenant),  # names that a million lessons share are one object each
        scope=sys.intern(scope),
        scope_id=sys.intern(scope_id),
        source=sys.intern(event.source),
        role=sys.intern(event.role),
        trust=trust,
        first_seq=event.seq,
        born_seq=event.seq,
        last_seq=event.seq,
        first_time=event.time,
        last_time=event.time,
        date=body.get("date"),
        expires=_expiry(event),
    )


def _changed(lesson: Lesson, event: Event, trust: float) -> Lesson:
    """The lesson with a new answer; the wording that was corrected becomes one of its phrasings.

    An answer that was to expire takes its expiry with it.
    """
    fresh = _new_lesson(event, lesson.lesson_id, lesson.scope, lesson.scope_id, trust)
    phrasings = dict.fromkeys((*lesson.phrasings, fresh.question, *fresh.paraphrases))
    del phrasings[lesson.question]
    previous = fresh.previous or (lesson.answer if lesson.answer != fresh.answer else lesson.previous)
    return replace(
        fresh,
        question=lesson.question,
        paraphrases=tuple(phrasings),
        previous=previous,
        first_seq=lesson.first_seq,
        first_time=lesson.first_time,
        date=fresh.date or lesson.date,
    )


def fold(events: Iterable[Event], settings: MemorySettings | None = None) -> dict[str, Lesson]:
    """The lessons after ``events`` (in the order of ``seq``), without an encoder: what the update cycle trains on."""
    state = Fold(settings)
    for event in events:
        state.step(event)
    return {lesson_id: slot.lesson for lesson_id, slot in state.slots.items()}
