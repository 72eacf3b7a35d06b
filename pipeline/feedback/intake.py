"""From what a client says to what the log keeps: answers given, feedback, and the lesson that feedback causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from pipeline.data.lines import MAX_TEXT, LessonLine
from pipeline.evaluate.protocol import Message
from pipeline.feedback.curation import Curator
from pipeline.feedback.events import EventLog
from pipeline.feedback.keys import Key
from pipeline.feedback.meaning import correction, rating
from pipeline.feedback.records import HELD, Event, NewEvent, attempt, new_id, utc_now, with_the_sound
from pipeline.feedback.served import STORE
from pipeline.feedback.standing import NotAllowed, owns, speaker, standing
from pipeline.memory.belief import slot_id
from pipeline.memory.types import NARROWER, Lesson, moment

FeedbackKind = Literal["rating", "correction", "comment"]
NOW = "now"

# Fields of a lesson line that a lesson event has a place of its own for; everything else is kept under "line".
_LESSON_FIELDS = {"question", "answer", "paraphrases", "previous", "date", "expires"}


class UnknownResponse(LookupError):  # noqa: N818 - reads as what happened
    """No answer with this response id was given to this tenant."""


class UnknownLesson(LookupError):  # noqa: N818
    """No lesson with this id is in this tenant's log."""


@dataclass(frozen=True)
class Receipt:
    """What was durably recorded; ``duplicate``: by an earlier request with the same feedback id."""

    feedback_id: str
    seq: int
    lesson_id: str | None
    lesson_seq: int | None
    duplicate: bool
    model_version: int | None = None  # of the answer that the feedback is about
    quarantined: tuple[str, ...] = ()  # why it does not count for others until a review accepts it


def answer_event(
    *,
    key: Key,
    question: str,
    answer: str,
    messages: Sequence[Message] = (),
    strategy: str = "weights",
    lessons: Mapping[str, float] | None = None,
    model_version: int = 0,
    milliseconds: float = 0.0,
    source: str | None = None,
    request_id: str | None = None,
    response_id: str | None = None,
    choice: Mapping[str, Any] | None = None,
    store: bool = False,
) -> NewEvent:
    """An answer with the weight of each lesson that it cites, so that feedback can find its way back.

    ``choice``: how its strategy was chosen (:meth:`pipeline.memory.policy.Choice.body`), for ratings to learn from.
    ``store``: whether its question may be replayed (:mod:`pipeline.feedback.served`).
    """
    cited = [{"lesson_id": lesson_id, "weight": float(weight)} for lesson_id, weight in (lessons or {}).items()]
    body = {
        "request_id": request_id or new_id("req"),
        "messages": list(messages),
        "question": question,
        "answer": answer,
        "strategy": strategy,
        "lessons": cited,
        "model_version": model_version,
        "milliseconds": milliseconds,
        **({"choice": dict(choice)} if choice else {}),
        **({STORE: True} if store else {}),
    }
    who = source or key.name
    return NewEvent(
        kind="answer",
        body=body,
        source=who,
        role=key.role,
        tenant=key.tenant,
        scope="user",
        scope_id=who,
        response_id=response_id or new_id("resp"),
    )


def record_answer(log: EventLog, **said: Any) -> Event:
    """Append one :func:`answer_event`, which takes the same keywords."""
    return log.append([answer_event(**said)])[0]


@dataclass(frozen=True)
class Said:
    """Feedback on an answer, as it came in.

    ``value``: the right answer for a correction, a number in [-1, 1] for a rating, text for a comment.
    ``scope``: for whom a correction counts; by default for the ``session`` where one is named, else as far as the
    key reaches.
    """

    response_id: str
    kind: FeedbackKind
    key: Key
    value: str | float | None = None
    tags: Sequence[str] = ()
    feedback_id: str | None = None
    source: str | None = None
    scope: str | None = None
    session: str = ""


def record_feedback(log: EventLog, *, curator: Curator | None = None, **said: Any) -> Receipt:
    """Record feedback, :class:`Said`'s fields, and the lesson event that it causes, in one transaction.

    ``curator``: what an asker says passes it before it counts for others; here and below.
    Raises :class:`UnknownResponse`, or ``ValueError`` for a value that does not fit its kind.
    """
    (receipt,) = record_feedbacks(log, [Said(**said)], curator)
    if isinstance(receipt, Exception):
        raise receipt
    return receipt


def record_feedbacks(log: EventLog, said: Sequence[Said], curator: Curator | None = None) -> list[Receipt | Exception]:
    """The same for many in one transaction: each has its receipt, or what was refused of it alone."""
    with log.together():
        answered = log.responses(one.response_id for one in said)
        caused = [attempt(_caused, log, one, answered.get(one.response_id)) for one in said]
        return with_the_sound(caused, partial(_stored, log, curator))


def _stored(log: EventLog, curator: Curator | None, caused: list[list[NewEvent]]) -> list[Receipt | Exception]:
    screened = caused if curator is None else curator.screen(log, caused)
    stored = zip(screened, log.append_each(screened), strict=True)
    return [had if isinstance(had, Exception) else _receipt(events, had) for events, had in stored]


def _caused(log: EventLog, said: Said, answered: Event | None) -> list[NewEvent]:
    """The feedback event, and the lesson event where there is one."""
    checked = _checked_value(said.kind, said.value)
    if answered is None or answered.tenant != said.key.tenant:
        raise UnknownResponse(f"no answer with response_id {said.response_id!r} was given here")
    told = {name: answered.body.get(name) for name in ("model_version", "question", "answer", "lessons")}
    asked = said.scope or ("session" if said.session else None)
    place = standing(said.key, said.source or said.key.name, said.feedback_id, said.response_id, asked, said.session)
    if said.kind == "rating" and "choice" in answered.body:
        told["choice"] = answered.body["choice"]
    body = {"kind": said.kind, "value": checked, "tags": list(said.tags), **told}
    lesson = None
    if isinstance(checked, str) and said.kind == "correction":
        lesson = correction(log, answered, checked, place)
    elif isinstance(checked, float):
        lesson = rating(answered, checked)
    caused = [] if lesson is None else [NewEvent(kind="lesson", body=lesson, **place)]
    return [NewEvent(kind="feedback", body=body, **place), *caused]


def record_lesson(
    log: EventLog,
    line: LessonLine,
    *,
    key: Key,
    feedback_id: str | None = None,
    source: str | None = None,
    session: str = "",
    replaces: Lesson | None = None,
) -> Receipt:
    """Record a lesson that was taught directly; a line of scope "session" needs the name of the ``session``.

    ``replaces``: the lesson of the same fact in other words (:func:`pipeline.memory.rewording.overlap`).
    Raises :class:`NotAllowed` for a scope beyond the key's role.
    """
    place = standing(key, source or key.name, feedback_id, None, line.scope, session)
    own = slot_id(key.tenant, place["scope"], place["scope_id"], line.question)
    body = {
        "op": "correct",
        "lesson_id": own if replaces is None else replaces.lesson_id,
        "question": line.question,
        "answer": line.answer,
        "previous": line.previous,
        "paraphrases": list(line.paraphrases),
        "date": line.date,
        "expires": line.expires,
        "line": line.model_dump(mode="json", exclude=_LESSON_FIELDS, exclude_defaults=True),
    }
    return _append(log, [NewEvent(kind="lesson", body=body, **place)])


def retract_lesson(
    log: EventLog,
    lesson_id: str,
    *,
    key: Key,
    feedback_id: str | None = None,
    source: str | None = None,
    session: str = "",
    lesson: Lesson | None = None,
) -> Receipt:
    """Take a lesson back. An asker may take back only a lesson in the asker's own scope.

    ``lesson``: as the memory has it, for one that askers' evidence made and that no event of the log names.
    Raises :class:`UnknownLesson` or :class:`NotAllowed`.
    """
    place = _governed(log.by_lesson(key.tenant, lesson_id), lesson_id, key, source, session, lesson)
    return _append(log, [_lesson_event({"op": "retract", "lesson_id": lesson_id}, feedback_id, place)])


def expire_lesson(
    log: EventLog,
    lesson_id: str,
    expires: str | None = NOW,
    *,
    key: Key,
    feedback_id: str | None = None,
    source: str | None = None,
    session: str = "",
    lesson: Lesson | None = None,
) -> Receipt:
    """Give a lesson an end: a date, a time, "now"; ``None`` takes the end away. Who may retract it, may do this.

    Raises ``ValueError`` for what is no time, and what :func:`retract_lesson` raises.
    """
    end = None if expires is None else moment(utc_now() if expires == NOW else expires)
    place = _governed(log.by_lesson(key.tenant, lesson_id), lesson_id, key, source, session, lesson)
    body = {"op": "expire", "lesson_id": lesson_id, "expires": end}
    return _append(log, [_lesson_event(body, feedback_id, place)])


def rate_lesson(
    log: EventLog,
    lesson_id: str,
    answer: str,
    value: float,
    *,
    key: Key,
    feedback_id: str | None = None,
    source: str | None = None,
    session: str = "",
    lesson: Lesson | None = None,
    curator: Curator | None = None,
) -> Receipt:
    """Evidence for (1) or against (-1) an ``answer`` of a lesson, from anybody who may read the lesson.

    Raises ``ValueError`` for a value outside [-1, 1], and :class:`UnknownLesson`.
    """
    checked = _checked_value("rating", value)
    place = _place_of(log.by_lesson(key.tenant, lesson_id), lesson_id, key, source, lesson)
    if place["scope"] in NARROWER and not owns(place, session):
        raise UnknownLesson(f"no lesson with id {lesson_id!r} was taught here")
    told = {"question": lesson.question} if lesson is not None else {}
    body = {"op": "rate", "lesson_id": lesson_id, **told, "answer": answer, "value": checked}
    return _append(log, [_lesson_event(body, feedback_id, place)], curator)


def _place_of(
    history: Sequence[Event], lesson_id: str, key: Key, source: str | None, lesson: Lesson | None
) -> dict[str, Any]:
    """The columns of an event about a lesson that is there: who speaks, and whose lesson it is."""
    known = lesson is not None and lesson.tenant == key.tenant
    if not history and not known:
        raise UnknownLesson(f"no lesson with id {lesson_id!r} was taught here")
    owned = lesson if lesson is not None and known else history[0]
    return speaker(key, source or key.name) | {"scope": owned.scope, "scope_id": owned.scope_id}


def _governed(
    history: Sequence[Event],
    lesson_id: str,
    key: Key,
    source: str | None,
    session: str,
    lesson: Lesson | None = None,
) -> dict[str, Any]:
    """The same, if the key may change the lesson: a teacher any lesson, an asker the own ones."""
    place = _place_of(history, lesson_id, key, source, lesson)
    if not key.may("teach") and not owns(place, session):
        why = f"lesson {lesson_id!r} has scope {place['scope']!r}"
        raise NotAllowed(f"{why}: changing it needs a key with role 'teach'")
    return place


def _lesson_event(body: dict[str, Any], feedback_id: str | None, place: dict[str, Any]) -> NewEvent:
    return NewEvent(kind="lesson", body=body, feedback_id=feedback_id or new_id("fb"), **place)


def amend_lesson(
    log: EventLog,
    lesson_id: str,
    *,
    answer: str | None = None,
    paraphrases: Sequence[str] = (),
    key: Key,
    feedback_id: str | None = None,
    source: str | None = None,
    session: str = "",
    curator: Curator | None = None,
) -> Receipt:
    """Give a lesson another answer, more phrasings, or both; an asker may amend only a lesson of the own scope.

    An end that is still to come stays; a lesson that has ended is told anew, without one.
    """
    history = log.by_lesson(key.tenant, lesson_id)
    place = _governed(history, lesson_id, key, source, session)
    private = place["scope"] in NARROWER
    counted = [e for e in history if private or HELD not in e.body]
    changes = [e for e in counted if e.body["op"] in ("correct", "retract")]
    if not changes:
        raise UnknownLesson(f"lesson {lesson_id!r} waits for a review: see 'agm feedback review list'")
    if (last := changes[-1].body)["op"] == "retract":
        raise UnknownLesson(f"lesson {lesson_id!r} has been taken back: teach it again")
    changed = {
        "op": "correct",
        "lesson_id": lesson_id,
        **{name: history[0].body.get(name) for name in ("question", "date")},
        "answer": answer or last["answer"],
        "previous": last["answer"] if answer else None,
        "paraphrases": list(paraphrases),
        "expires": _end_to_come(counted),
    }
    return _append(log, [_lesson_event(changed, feedback_id, place)], curator)


def _end_to_come(history: Sequence[Event]) -> str | None:
    """When the lesson ends, if that is still to come."""
    end = next((e.body.get("expires") for e in reversed(history) if e.body["op"] in ("correct", "expire")), None)
    return end if end is not None and moment(end) > moment(utc_now()) else None


def _append(log: EventLog, events: list[NewEvent], curator: Curator | None = None) -> Receipt:
    screened = events if curator is None else curator.screened(log, events)
    return _receipt(screened, log.append(screened))


def _receipt(events: Sequence[NewEvent], stored: Sequence[Event]) -> Receipt:
    lesson = next((event for event in stored if event.kind == "lesson"), None)
    return Receipt(
        feedback_id=stored[0].feedback_id or "",
        seq=stored[0].seq,
        lesson_id=lesson.body["lesson_id"] if lesson else None,
        lesson_seq=lesson.seq if lesson else None,
        duplicate=stored[0].event_id != events[0].event_id,
        model_version=stored[0].body.get("model_version"),
        quarantined=tuple(stored[0].body.get(HELD, ())),
    )


def _checked_value(kind: FeedbackKind, value: str | float | None) -> str | float:
    if kind not in get_args(FeedbackKind):
        raise ValueError(f"kind = {kind!r}: use one of {', '.join(get_args(FeedbackKind))}")
    if kind == "rating":
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
            raise ValueError(f"value = {value!r:.80}: a rating is a number from -1 (wrong) to 1 (right)")
        return float(value)
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
        raise ValueError(f"value = {value!r:.80}: a {kind} is text of 1 to {MAX_TEXT} characters")
    return value.strip()
