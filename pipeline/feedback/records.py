"""The records that travel through the event log: plain frozen data, no storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, ParamSpec, TypeVar
from uuid import uuid4

SCHEMA_VERSION = 1
HELD = "quarantined"  # the field of an event's body that holds why it is held back
ACCEPTED = "accepted"  # the field of a lesson event that a review told again

EventKind = Literal["answer", "feedback", "lesson", "erasure", "quarantine", "review"]
Role = Literal["ask", "teach", "admin"]
Scope = Literal["session", "user", "tenant", "global"]

# What a lesson event does to the slot that it names.
LessonOp = Literal["correct", "rate", "retract", "expire"]


Asked = ParamSpec("Asked")
Result = TypeVar("Result")
Tried = TypeVar("Tried")


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid4().hex}"


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def check_text(name: str, value: str | None) -> None:
    """Raises ``ValueError`` for what a database refuses or changes."""
    if value is not None and ("\x00" in value or not _encodes(value)):
        raise ValueError(f"{name} = {value!r:.80}: holds a character that no database text can keep (NUL or surrogate)")


def _encodes(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def attempt(work: Callable[Asked, Result], *asked: Asked.args, **named: Asked.kwargs) -> Result | Exception:
    """What ``work`` returns, or, where it refuses what was asked, its error: one of many, which fails nobody else."""
    try:
        return work(*asked, **named)
    except (ValueError, LookupError, PermissionError) as error:
        return error


def with_the_sound(
    tried: Sequence[Tried | Exception], work: Callable[[list[Tried]], Iterable[Result | Exception]]
) -> list[Result | Exception]:
    """``work`` on all that were not refused at once, its results in their places; errors stay where they are."""
    results = iter(work([one for one in tried if not isinstance(one, Exception)]))
    return [one if isinstance(one, Exception) else next(results) for one in tried]


@dataclass(frozen=True)
class NewEvent:
    """An event before the log has given it its place.

    ``body`` by kind:

    - ``answer``: request_id, messages, question, answer, strategy, lessons ([{lesson_id, weight}]), model_version,
      milliseconds, choice (how the strategy was chosen, where there was a choice), store (true where the question may
      be replayed)
    - ``feedback``: kind (rating | correction | comment), value, tags, model_version, question, answer, lessons, choice
      (of the answer that is rated)
    - ``lesson``: op, lesson_id (the slot), question, answer, previous, paraphrases, date, expires (a moment in UTC
      from which on the lesson is not read, or None), value (for a rating), line (the other fields of a taught line)
    - ``quarantine``: reasons (why the feedback with this feedback_id is held back; its other events are marked, too)
    - ``review``: feedback_id (of what is decided), decision (accept | reject)
    - ``erasure``: rows (how many), lessons (ids of those that it changed)
    """

    kind: EventKind
    body: dict[str, Any]
    source: str  # who said it: the key's name, or the name that the client gave
    role: Role = "ask"
    tenant: str = "default"
    scope: Scope = "global"
    scope_id: str = ""  # the user's or session's name where scope is user or session
    event_id: str = field(default_factory=lambda: new_id("evt"))
    time: str = field(default_factory=utc_now)
    feedback_id: str | None = None  # the client's idempotency key
    response_id: str | None = None
    key_name: str | None = None  # of the API key that it came with
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Event(NewEvent):
    """An event with its place in commit order."""

    seq: int = 0
