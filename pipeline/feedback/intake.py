"""From what a client says to what the log keeps: answers given, feedback, and the lesson that feedback causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pipeline.data.lines import MAX_TEXT, LessonLine
from pipeline.evaluate.protocol import Message
from pipeline.feedback.curation import Curator
from pipeline.feedback.events import EventLog
from pipeline.feedback.keys import Key
from pipeline.feedback.records import HELD, Event, NewEvent, Scope, new_id, utc_now
from pipeline.memory.belief import slot_id
from pipeline.memory.types import NARROWER, Lesson, Viewer, moment

FeedbackKind = Literal["rating", "correction", "comment"]
# A correction rewrites the lesson that its answer came from only if that lesson surely is about the same fact; below,
# it opens a lesson of its own, because rewriting a neighbour would break what was right.
CORRECTED_WEIGHT = 0.9
NOW = "now"
RATED_WEIGHT = 0.5  # a rating is about the lesson that had more than half of the weight

# Fields of a lesson line that a lesson event has a place of its own for; everything else is kept under "line".
_LESSON_FIELDS = {"question", "answer", "paraphrases", "previous", "date", "expires"}


class UnknownResponse(LookupError):  # noqa: N818 - reads as what happened
    """No answer with this response id was given to this tenant."""


class UnknownLesson(LookupError):  # noqa: N818
    """No lesson with this id is in this tenant's log."""


class NotAllowed(PermissionError):  # noqa: N818
    """The key's role does not reach as far as the request."""


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
) -> NewEvent:
    """An answer with the weight of each lesson that it cites, so that feedback can find its way back.

    ``choice``: how its strategy was chosen (:meth:`pipeline.memory.policy.Choice.body`), for ratings to learn from.
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


def record_feedback(
    log: EventLog,
    *,
    response_id: str,
    kind: FeedbackKind,
    value: str | float | None = None,
    tags: Sequence[str] = (),
    feedback_id: str | None = None,
    key: Key,
    source: str | None = None,
    scope: str | None = None,
    session: str = "",
    curator: Curator | None = None,
) -> Receipt:
    """Record feedback on an answer and the lesson event that it causes, in one transaction.

    ``value``: the right answer for a correction, a number in [-1, 1] for a rating, text for a comment.
    ``scope``: for whom a correction counts; by default for the ``session`` where one is named, else as far as the
    key reaches. ``curator``: what an asker says passes it before it counts for others; here and below.
    Raises :class:`UnknownResponse`, or ``ValueError`` for a value that does not fit its kind.
    """
    checked = _checked_value(kind, value)
    answered = log.response(response_id)
    if answered is None or answered.tenant != key.tenant:
        raise UnknownResponse(f"no answer with response_id {response_id!r} was given here")
    told = {name: answered.body.get(name) for name in ("model_version", "question", "answer", "lessons")}
    asked = scope or ("session" if session else None)
    place = _place(key, source or key.name, feedback_id, response_id, asked, session)
    if kind == "rating" and "choice" in answered.body:
        told["choice"] = answered.body["choice"]
    feedback = NewEvent(kind="feedback", body={"kind": kind, "value": checked, "tags": list(tags), **told}, **place)
    lesson = _lesson_body(answered, kind, checked, place)
    caused = [] if lesson is None else [NewEvent(kind="lesson", body=lesson, **place)]
    return _append(log, [feedback, *caused], curator)


def record_lesson(
    log: EventLog,
    line: LessonLine,
    *,
    key: Key,
    feedback_id: str | None = None,
    source: str | None = None,
    session: str = "",
) -> Receipt:
    """Record a lesson that was taught directly; a line of scope "session" needs the name of the ``session``.

    Raises :class:`NotAllowed` for a scope beyond the key's role.
    """
    place = _place(key, source or key.name, feedback_id, None, line.scope, session)
    body = {
        "op": "correct",
        "lesson_id": slot_id(key.tenant, place["scope"], place["scope_id"], line.question),
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
    place = _place_of(log, lesson_id, key, source, lesson)
    return _govern(log, {"op": "retract", "lesson_id": lesson_id}, key, place, session, feedback_id)


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
    place = _place_of(log, lesson_id, key, source, lesson)
    return _govern(log, {"op": "expire", "lesson_id": lesson_id, "expires": end}, key, place, session, feedback_id)


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
    place = _place_of(log, lesson_id, key, source, lesson)
    if place["scope"] in NARROWER and not _own(place, session):
        raise UnknownLesson(f"no lesson with id {lesson_id!r} was taught here")
    told = {"question": lesson.question} if lesson is not None else {}
    body = {"op": "rate", "lesson_id": lesson_id, **told, "answer": answer, "value": checked}
    event = NewEvent(kind="lesson", body=body, feedback_id=feedback_id or new_id("fb"), **place)
    return _append(log, [event], curator)


def _place_of(log: EventLog, lesson_id: str, key: Key, source: str | None, lesson: Lesson | None) -> dict[str, Any]:
    """The columns of an event about a lesson that is there: who speaks, and whose lesson it is."""
    history = log.by_lesson(key.tenant, lesson_id)
    known = lesson is not None and lesson.tenant == key.tenant
    if not history and not known:
        raise UnknownLesson(f"no lesson with id {lesson_id!r} was taught here")
    owned = lesson if lesson is not None and known else history[0]
    return {
        "source": source or key.name,
        "role": key.role,
        "tenant": key.tenant,
        "scope": owned.scope,
        "scope_id": owned.scope_id,
    }


def _govern(
    log: EventLog, body: dict[str, Any], key: Key, place: dict[str, Any], session: str, feedback_id: str | None
) -> Receipt:
    """Record what a teacher may do with any lesson, and an asker with the own ones."""
    if not key.may("teach") and not _own(place, session):
        raise NotAllowed(
            f"lesson {body['lesson_id']!r} has scope {place['scope']!r}: changing it needs a key with role 'teach'"
        )
    return _append(log, [NewEvent(kind="lesson", body=body, feedback_id=feedback_id or new_id("fb"), **place)])


def _own(place: dict[str, Any], session: str) -> bool:
    return Viewer(place["tenant"], place["source"], session).owns(place["scope"], place["scope_id"])


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
    """Give a lesson another answer, more phrasings, or both; an asker may amend only a lesson of the own scope."""
    first, last, who = _history(log, lesson_id, key, source, session)
    if last.body["op"] == "retract":
        raise UnknownLesson(f"lesson {lesson_id!r} has been taken back: teach it again")
    place = _place(key, who, feedback_id, None) | {"scope": first.scope, "scope_id": first.scope_id}
    told = {name: first.body.get(name) for name in ("question", "date")}
    changed = {
        "op": "correct",
        "lesson_id": lesson_id,
        **told,
        "answer": answer or last.body["answer"],
        "previous": last.body["answer"] if answer else None,
        "paraphrases": list(paraphrases),
    }
    return _append(log, [NewEvent(kind="lesson", body=changed, **place)], curator)


def _history(log: EventLog, lesson_id: str, key: Key, source: str | None, session: str) -> tuple[Event, Event, str]:
    """The lesson's first and last event and who is speaking, who may change the lesson."""
    history, who = log.by_lesson(key.tenant, lesson_id), source or key.name
    if not history:
        raise UnknownLesson(f"no lesson with id {lesson_id!r} was taught here")
    first = history[0]
    own = {"user": who, "session": session}.get(first.scope, "")
    if not key.may("teach") and not (own and own == first.scope_id):
        raise NotAllowed(f"lesson {lesson_id!r} has scope {first.scope!r}: changing it needs a key with role 'teach'")
    changing = [e for e in history if e.body["op"] in ("correct", "retract") and (own or HELD not in e.body)]
    if not changing:
        raise UnknownLesson(f"lesson {lesson_id!r} waits for a review: see 'agm feedback review list'")
    return first, changing[-1], who


def _append(log: EventLog, events: list[NewEvent], curator: Curator | None = None) -> Receipt:
    stored = log.append(events if curator is None else curator.screened(log, events))
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


def _place(
    key: Key,
    source: str,
    feedback_id: str | None,
    response_id: str | None,
    asked: str | None = None,
    session: str = "",
) -> dict[str, Any]:
    """The columns that say who spoke, and for whom it counts."""
    scope = _scope(key, asked)
    if scope == "session" and not session:
        raise ValueError("session = '': scope 'session' needs the name of the session")
    return {
        "source": source,
        "role": key.role,
        "tenant": key.tenant,
        "scope": scope,
        "scope_id": {"user": source, "session": session}.get(scope, ""),
        "feedback_id": feedback_id or new_id("fb"),
        "response_id": response_id,
    }


def _scope(key: Key, asked: str | None) -> Scope:
    """The scope that was asked for, where the key reaches as far; by default as far as it reaches."""
    allowed: tuple[Scope, ...] = ("global", "tenant", "user", "session") if key.may("teach") else ("user", "session")
    if asked is None:
        return allowed[0]
    if asked not in get_args(Scope):
        raise ValueError(f"scope = {asked!r}: use one of {', '.join(allowed)}")
    if asked not in allowed:
        raise NotAllowed(f"scope = {asked!r}: a key with role {key.role!r} may use {', '.join(allowed)}")
    return next(scope for scope in allowed if scope == asked)


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


def _lesson_body(
    answered: Event, kind: FeedbackKind, value: str | float, place: dict[str, Any]
) -> dict[str, Any] | None:
    """What the feedback means for the memory: nothing for a comment, or for a rating of an answer without a lesson."""
    if kind == "correction":
        question = answered.body["question"]
        own = slot_id(answered.tenant, place["scope"], place["scope_id"], question)
        return {
            "op": "correct",
            "lesson_id": own if place["scope"] == "session" else _cited(answered, CORRECTED_WEIGHT) or own,
            "question": question,
            "answer": value,
            "previous": answered.body["answer"],
            "paraphrases": [],
            "date": None,
            "expires": None,
        }
    if kind == "rating" and (cited := _cited(answered, RATED_WEIGHT)) is not None:
        told = {name: answered.body[name] for name in ("question", "answer")}
        return {"op": "rate", "lesson_id": cited, **told, "value": value}
    return None


def _cited(answered: Event, more_than: float) -> str | None:
    lessons = [lesson for lesson in answered.body.get("lessons", ()) if lesson["weight"] > more_than]
    return max(lessons, key=lambda lesson: lesson["weight"])["lesson_id"] if lessons else None
