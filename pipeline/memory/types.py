"""What the lesson memory gives out: plain frozen data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime

_SPACE = re.compile(r"\s+")


def question_key(question: str) -> str:
    """One key for a question written the same way: case, spacing and closing punctuation do not count.

    Punctuation inside words does: "C", "C++" and "C#" are three subjects.
    """
    return _SPACE.sub(" ", question).strip().casefold().rstrip("?!. ")


def moment(when: datetime | str) -> str:
    """UTC in milliseconds, as the event log writes times, so that moments compare as text.

    A date alone is the beginning of that day; a time without an offset is UTC. ``ValueError`` for anything else.
    """
    try:
        time = datetime.fromisoformat(when) if isinstance(when, str) else when
        utc = time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{when!r:.80} is no time: write 2027-01-31 or 2027-01-31T12:00:00+01:00") from None
    return utc.isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Viewer:
    """Who asks. A viewer sees the lessons for everybody in the tenant and those of the own user and session.

    A session belongs to whoever knows its name, as a meeting belongs to whoever has the link.
    """

    tenant: str = "default"
    user: str = ""
    session: str = ""

    def owns(self, scope: str, scope_id: str) -> bool:
        owner = {"user": self.user, "session": self.session}.get(scope, "")
        return bool(owner) and owner == scope_id


# A tenant is a wall: no scope reaches through it. Inside, a narrower scope beats a wider one for whoever sees both.
# "tenant" and "global" lessons are both read by everybody in the tenant; only "global" ones are also trained into the
# weights, which all tenants of an installation share.
NARROWER = {"session": 2, "user": 1}


@dataclass(frozen=True, slots=True)
class Lesson:
    """One slot of the memory, folded from the events about it."""

    lesson_id: str
    question: str
    answer: str  # the best-believed one
    beliefs: dict[str, float]  # sums to at most 1; the rest is belief that no lesson is right
    previous: str | None = None
    paraphrases: tuple[str, ...] = ()
    tenant: str = "default"
    scope: str = "global"
    scope_id: str = ""  # the user's or session's name
    source: str = ""  # who gave the answer that the slot was born with
    role: str = "ask"
    trust: float = 1.0  # of that source then
    first_seq: int = 0
    born_seq: int = 0  # of the event that the slot was last born with
    last_seq: int = 0
    first_time: str = ""
    last_time: str = ""
    date: str | None = None  # since when it is so, as the lesson line says it
    expires: str | None = None  # from this moment on it is not read

    @property
    def belief(self) -> float:
        return self.beliefs.get(self.answer, 0.0)

    @property
    def believed(self) -> bool:
        """Whether the best answer is believed more than "no lesson is right"."""
        return self.belief > 1.0 - sum(self.beliefs.values())

    @property
    def phrasings(self) -> tuple[str, ...]:
        return (self.question, *self.paraphrases)

    @property
    def private(self) -> bool:
        return self.scope in NARROWER

    def expired(self, now: str) -> bool:
        """``now`` as :func:`moment` writes it."""
        return self.expires is not None and self.expires <= now

    def visible_to(self, viewer: Viewer) -> bool:
        return self.tenant == viewer.tenant and (not self.private or viewer.owns(self.scope, self.scope_id))


@dataclass(frozen=True)
class Evidence:
    """One step of a slot's beliefs: how it was born, or a vote that stands."""

    seq: int
    source: str
    answer: str
    value: float  # 1: for the answer, below 0: against it
    trust: float
    alpha: float
    beliefs: dict[str, float]  # after the step


@dataclass(frozen=True)
class Explanation:
    """Why a slot believes what it believes: every step that counts, in order; replaced votes do not."""

    lesson: Lesson
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class SlotWeight:
    """A lesson that the first stage found, with the weight that the reading gives it."""

    lesson_id: str
    question: str
    answer: str  # the best-believed one
    weight: float
    belief: float  # in ``answer``
    cosine: float = 0.0  # of the nearest phrasing to the question
    beliefs: dict[str, float] = field(default_factory=dict)  # in every candidate answer
    previous: str | None = None  # the answer that the lesson corrected, where it is known

    @property
    def answers(self) -> dict[str, float]:
        """Candidate answers with their beliefs, at most 1 together."""
        return self.beliefs or {self.answer: self.belief}


@dataclass(frozen=True)
class Inference:
    """What follows from lessons though none of them answers the question (:mod:`pipeline.memory.infer`)."""

    text: str
    lesson_ids: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """Equation 2's result: weights over lessons and the null slot; together they sum to 1."""

    null_weight: float = 1.0
    slots: tuple[SlotWeight, ...] = field(default=())  # heaviest first
    inferred: Inference | None = None

    @property
    def gate(self) -> float:
        """The weight on lessons."""
        return 1.0 - self.null_weight
