"""What the lesson memory gives out: plain frozen data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SPACE = re.compile(r"\s+")


def question_key(question: str) -> str:
    """One key for a question written the same way: case, spacing and closing punctuation do not count.

    Punctuation inside words does: "C", "C++" and "C#" are three subjects.
    """
    return _SPACE.sub(" ", question).strip().casefold().rstrip("?!. ")


@dataclass(frozen=True)
class Viewer:
    """Who asks. A viewer sees the tenant's global lessons and their own user's and session's lessons."""

    tenant: str = "default"
    user: str = ""
    session: str = ""


@dataclass(frozen=True)
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
    scope_id: str = ""
    source: str = ""
    role: str = "ask"
    first_seq: int = 0
    last_seq: int = 0
    date: str | None = None
    trust: float = 1.0

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

    def visible_to(self, viewer: Viewer) -> bool:
        if self.tenant != viewer.tenant:
            return False
        if self.scope in ("user", "session"):
            owner = viewer.user if self.scope == "user" else viewer.session
            return bool(owner) and owner == self.scope_id
        return True


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

    @property
    def answers(self) -> dict[str, float]:
        """Candidate answers with their beliefs, at most 1 together."""
        return self.beliefs or {self.answer: self.belief}


@dataclass(frozen=True)
class Reading:
    """Equation 2's result: weights over lessons and the null slot; together they sum to 1."""

    null_weight: float = 1.0
    slots: tuple[SlotWeight, ...] = field(default=())  # heaviest first

    @property
    def gate(self) -> float:
        """The weight on lessons."""
        return 1.0 - self.null_weight
