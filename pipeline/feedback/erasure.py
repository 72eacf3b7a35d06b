"""Erasing: what somebody said, one lesson, or everything that mentions somebody; and every copy of it.

One transaction decides: the rows go, tombstones take their place, the sources' keys are destroyed, the lessons that
rested on the rows are taken back, and what others had said about those lessons moves behind that, so that every replica
folds to the memory that would be if the erased had never been said. The copies follow in ``copies.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from pipeline.feedback.database import write_transaction
from pipeline.feedback.events import EventLog, body_text
from pipeline.feedback.records import Event, NewEvent, utc_now
from pipeline.feedback.tables import citations, erasures, sequence, tombstones
from pipeline.feedback.tables import events as table
from pipeline.memory.belief import Fold
from pipeline.memory.types import Lesson, question_key

SOURCE = "erasure"
_CHUNK = 500


@dataclass(frozen=True)
class Target:
    """Whose or what to erase, in one tenant. ``subjects``: any text that a row mentions, as whole words."""

    tenant: str = "default"
    sources: tuple[str, ...] = ()
    lessons: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.sources or self.lessons or self.subjects):
            raise ValueError("nothing to erase: name a source, a lesson or a subject")
        if short := [subject for subject in self.subjects if len(subject.strip()) < 3]:
            raise ValueError(f"subject = {short[0]!r}: at least 3 characters, or half of the log would go")


@dataclass(frozen=True)
class Plan:
    """What is erased, without a word of it: the rows, the lessons that it touched, and how many rows moved."""

    tenant: str
    rows: tuple[int, ...]  # the numbers that no copy may hold any more: erased rows, and where moved rows were
    erased: int
    lessons: tuple[str, ...]
    sources: int


@dataclass
class _Choice:
    """Rows to erase, and what follows from it for the lessons."""

    erased: set[int] = field(default_factory=set)
    moved: list[Event] = field(default_factory=list)  # in order
    changed: set[str] = field(default_factory=set)
    retold: set[str] = field(
        default_factory=set
    )  # lessons that are taken back and told again: the changed ones or more


class TenantLog:
    """A tenant's events as erasure looks at them, and the lessons that they make."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events = {event.seq: event for event in events}
        self.lessons = [event for event in self.events.values() if event.kind == "lesson"]
        state = Fold()
        self.touched = {event.seq: state.step(event) for event in self.lessons}  # the slots that each event changed
        self.made = {lesson_id: slot.lesson for lesson_id, slot in state.slots.items()}
        self.trusted = bool(state.sources.records)  # some source's votes were judged


def mark(log: EventLog, target: Target) -> int:
    """Erase in the event log, in one transaction; returns the erasure's id, with which its copies are erased.

    Raises ``LookupError`` where nothing matches.
    """
    seen = list(_all(log, target.tenant))  # most of the reading is done before anybody has to wait
    with write_transaction(log.engine) as connection:
        connection.execute(select(sequence.c.value).where(sequence.c.name == "events").with_for_update())
        known = TenantLog([*seen, *_all(log, target.tenant, seen[-1].seq if seen else 0)])
        choice = _choose(known, target)
        if not choice.erased:
            raise LookupError(f"nothing in tenant {target.tenant!r} matches; nothing was erased")
        plan = Plan(
            tenant=target.tenant,
            rows=tuple(sorted(choice.erased | {event.seq for event in choice.moved})),
            erased=len(choice.erased),
            lessons=tuple(sorted(choice.changed)),
            sources=len(target.sources),
        )
        _remove(connection, choice.erased)
        head = _take_back(log, connection, plan, sorted(choice.retold))
        _move(log, connection, choice.moved, head)
        _bury(log, connection, [known.events[seq] for seq in choice.erased])
        log.vault.destroy(connection, [(target.tenant, source) for source in target.sources])
        values = {"time": utc_now(), "state": "erasing", "plan": vars(plan)}
        (erasure_id,) = connection.execute(insert(erasures).values(values)).inserted_primary_key or (0,)
        return int(erasure_id)


def plans(log: EventLog, *states: str) -> dict[int, Plan]:
    """The erasures in one of ``states`` (erasing, waiting for a cycle, done), oldest first."""
    query = select(erasures.c.id, erasures.c.plan).where(erasures.c.state.in_(states)).order_by(erasures.c.id)
    with log.engine.connect() as connection:
        found = connection.execute(query).all()
    return {
        row.id: Plan(**{**row.plan, "rows": tuple(row.plan["rows"]), "lessons": tuple(row.plan["lessons"])})
        for row in found
    }


def set_state(log: EventLog, erasure_ids: Iterable[int], state: str, report: dict[str, Any] | None = None) -> None:
    """``report``: the cycles and model versions that the erasure touched."""
    values: dict[str, Any] = {"state": state, **({"report": report} if report else {})}
    with write_transaction(log.engine) as connection:
        connection.execute(update(erasures).where(erasures.c.id.in_(list(erasure_ids))).values(values))


def told(log: EventLog, erasure_id: int, tenant: str) -> dict[str, Any] | None:
    """State, rows and lessons of one of the tenant's erasures, and its report once the copies are erased."""
    with log.engine.connect() as connection:
        row = connection.execute(select(erasures).where(erasures.c.id == erasure_id)).mappings().first()
    if row is None or row["plan"]["tenant"] != tenant:
        return None
    plan = row["plan"]
    return {"state": row["state"], "rows": plan["erased"], "lessons": plan["lessons"], **(row["report"] or {})}


def is_buried(log: EventLog, tenant: str, question: str, answer: str) -> bool:
    """Whether this lesson was erased, as it would be kept: redacted; an import leaves it out."""
    name = _lesson_print(log, tenant, log.redactor.text(question), log.redactor.text(answer))
    query = select(tombstones.c.time).where(tombstones.c.fingerprint == name)
    with log.engine.connect() as connection:
        return connection.execute(query).first() is not None


def _all(log: EventLog, tenant: str, seq: int = 0) -> Iterable[Event]:
    return (event for event in log.pages(seq) if event.tenant == tenant)


def _choose(known: TenantLog, target: Target) -> _Choice:
    choice = _Choice({seq for seq, event in known.events.items() if _matches(event, target)})
    named = set(target.lessons) | {
        known.events[seq].body["lesson_id"]
        for seq in choice.erased
        if known.events[seq].kind == "lesson" and _mentions(known.events[seq], target.subjects)
    }
    choice.erased |= {event.seq for event in known.lessons if event.body["lesson_id"] in named}
    remains = TenantLog(_without(known.lessons, choice.erased))
    before, after = known.made, remains.made
    choice.changed = {i for i in before.keys() | after.keys() if _told(before.get(i)) != _told(after.get(i))}
    # What was taken back or replaced before shows no more, and yet models, sets and manifests were made of it.
    choice.changed.update(*(known.touched[event.seq] for event in known.lessons if event.seq in choice.erased))
    gone = before.keys() - after.keys()
    for event in remains.lessons:  # what others said of a lesson that never was; what it meant for another lesson stays
        if event.body["lesson_id"] in gone and not remains.touched[event.seq] and not event.body.get("erased"):
            choice.erased.add(event.seq)
    _add_quotations(known, choice, after)
    _add_reviews(known, choice)
    _add_moved(known, choice)
    return choice


def _matches(event: Event, target: Target) -> bool:
    own = event.source in target.sources or (event.scope == "user" and event.scope_id in target.sources)
    return own or _mentions(event, target.subjects)


def _mentions(event: Event, subjects: Iterable[str]) -> bool:
    patterns = [re.compile(rf"(?<!\w){re.escape(subject.strip())}(?!\w)", re.IGNORECASE) for subject in subjects]
    return bool(patterns) and any(pattern.search(body_text(event.body)) for pattern in patterns)


def _without(lessons: Iterable[Event], erased: set[int]) -> list[Event]:
    return [event for event in lessons if event.seq not in erased]


def _told(lesson: Lesson | None) -> Any:
    return lesson and (lesson.question, lesson.answer, lesson.beliefs, lesson.paraphrases, lesson.previous)


def _add_quotations(known: TenantLog, choice: _Choice, after: dict[str, Lesson]) -> None:
    """Answers that cite a lesson whose answer is erased repeat it, and so does feedback on them."""
    before = {i: known.made[i].answer for i in choice.changed if i in known.made}
    silenced = {i for i in choice.changed if i not in after or after[i].answer != before.get(i, after[i].answer)}
    erased = _erased_answers(known, choice)
    repeated = set()
    for event in (event for event in known.events.values() if event.kind == "answer"):
        cited = {lesson["lesson_id"] for lesson in event.body.get("lessons") or ()}
        if cited & silenced or any(answer in event.body["answer"] for i in cited for answer in erased.get(i, ())):
            choice.erased.add(event.seq)
        if event.seq in choice.erased:
            repeated.add(event.response_id)
    choice.erased |= {e.seq for e in known.events.values() if e.kind == "feedback" and e.response_id in repeated}


def _add_reviews(known: TenantLog, choice: _Choice) -> None:
    """That a feedback was held back, and what a review decided about it."""
    gone = {known.events[seq].feedback_id for seq in choice.erased} - {None}
    for event in known.events.values():
        if event.kind in ("quarantine", "review") and event.body.get("feedback_id", event.feedback_id) in gone:
            choice.erased.add(event.seq)


def _erased_answers(known: TenantLog, choice: _Choice) -> dict[str, set[str]]:
    """What the erased events had told, by the lessons that they touched."""
    told: dict[str, set[str]] = {}
    for event in known.lessons:
        if event.seq in choice.erased and event.body["op"] == "correct":
            for lesson_id in known.touched[event.seq]:
                told.setdefault(lesson_id, set()).add(event.body["answer"])
    return told


def _add_moved(known: TenantLog, choice: _Choice) -> None:
    """What remains of the changed lessons has to be folded again, and so has what the same events say of others.

    Where sources have earned trust, one lesson's evidence weighs in another's: then all of the tenant's lessons are.
    """
    kept, state = _without(known.lessons, choice.erased), Fold()
    touched = {event.seq: state.step(event) for event in kept}
    gone = {known.events[seq].response_id for seq in choice.erased if known.events[seq].kind == "answer"}
    moving = {event.seq for event in kept if event.response_id in gone and event.body.get("previous")}
    while True:
        for seq in moving:
            choice.changed |= touched[seq]
        more = {seq for seq, lessons in touched.items() if lessons & choice.changed} - moving
        if not more:
            break
        moving |= more
    choice.retold = set(choice.changed)
    if known.trusted:
        moving = set(touched)
        named = {event.body["lesson_id"] for event in known.lessons}
        choice.retold |= named.union(*known.touched.values(), state.slots)
    quoting = [event for event in kept if event.seq in moving]
    choice.moved = [_unquoted(event) if event.response_id in gone else event for event in quoting]


def _unquoted(event: Event) -> Event:
    return Event(**{**vars(event), "body": {**event.body, "previous": None}})


def _remove(connection: Connection, seqs: Iterable[int]) -> None:
    for part in _chunks(seqs):
        connection.execute(delete(citations).where(citations.c.seq.in_(part)))
        connection.execute(delete(table).where(table.c.seq.in_(part)))


def _take_back(log: EventLog, connection: Connection, plan: Plan, retold: Iterable[str]) -> int:
    """Append the retractions that replicas follow, and a record of the erasure; returns the new head."""
    place: dict[str, Any] = {"source": SOURCE, "role": "admin", "tenant": plan.tenant}
    record = NewEvent(kind="erasure", body={"rows": plan.erased, "lessons": list(plan.lessons)}, **place)
    taken = [
        NewEvent(kind="lesson", body={"op": "retract", "lesson_id": lesson_id, "erased": True}, **place)
        for lesson_id in retold
    ]
    return log.append_within(connection, [record, *taken])[-1].seq


def _move(log: EventLog, connection: Connection, moved: Iterable[Event], head: int) -> None:
    seq = head
    for seq, event in enumerate(moved, head + 1):
        values: dict[str, Any] = {"seq": seq}
        key = log.vault.keys_for(connection, [(event.tenant, event.source)])[event.tenant, event.source]
        values["body"] = log.vault.seal(key, event.event_id, body_text(event.body))
        connection.execute(update(table).where(table.c.seq == event.seq).values(values))
        connection.execute(update(citations).where(citations.c.seq == event.seq).values(seq=seq))
    connection.execute(update(sequence).where(sequence.c.name == "events").values(value=seq))


def _bury(log: EventLog, connection: Connection, erased: Iterable[Event]) -> None:
    prints = set()
    for event in erased:
        if event.feedback_id:
            prints.add(log.feedback_print(event.tenant, event.feedback_id))
        if event.kind == "lesson" and event.body["op"] == "correct":
            prints.add(_lesson_print(log, event.tenant, event.body["question"], event.body["answer"]))
    for part in _chunks(prints):
        there = set(connection.scalars(select(tombstones.c.fingerprint).where(tombstones.c.fingerprint.in_(part))))
        rows = [{"fingerprint": name, "time": utc_now()} for name in part if name not in there]
        if rows:
            connection.execute(insert(tombstones), rows)


def _lesson_print(log: EventLog, tenant: str, question: str, answer: str) -> str:
    told = ["lesson", tenant, question_key(question), answer.strip().casefold()]
    return log.vault.service.fingerprint(json.dumps(told))


def _chunks(names: Iterable[Any]) -> Iterable[list[Any]]:
    ordered = sorted(names)
    return (ordered[start : start + _CHUNK] for start in range(0, len(ordered), _CHUNK))
