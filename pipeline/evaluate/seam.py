"""The seam that everything measured stands behind: lessons are taught in order, questions are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.data.lines import LessonLine
from pipeline.evaluate.protocol import MAX_NEW_TOKENS, Message

if TYPE_CHECKING:
    from pipeline.memory.mixture import Mixture


@dataclass(frozen=True)
class Reply:
    """One answer.

    - ``text``: ``None`` where the question was left to the uncorrected system; :func:`filled` puts its words there
    - ``from_memory``: a lesson was used; ``None`` where a system cannot tell, because lessons went into its weights
    - ``proposal``: what the lessons would answer if they had to, whatever was decided
    - ``confidence``: how sure the system is that the proposal applies; only the order of its values is used
    """

    text: str | None = None
    from_memory: bool | None = False
    proposal: str | None = None
    confidence: float | None = None


class System(Protocol):
    """What a stream is played to."""

    def teach(self, lines: Sequence[LessonLine]) -> None:
        """Take lessons in, one after the other."""

    def ask(self, questions: Sequence[str]) -> list[Reply]: ...

    def size_bytes(self) -> int:
        """What would have to be saved for what was taught, the models themselves not counted."""


class Generated(Protocol):
    @property
    def text(self) -> str: ...


class Generator(Protocol):
    """The part of the answerer that decodes greedily."""

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int | None = None,
        mixtures: Sequence[Mixture | None] | None = None,
    ) -> Sequence[Generated]: ...


class Responder(Protocol):
    """The part of the answerer that answers from its weights alone; ``guesses`` change the time and nothing else."""

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int | None = None,
        guesses: Sequence[str | None] | None = None,
    ) -> Sequence[Generated]: ...


def generate(
    answerer: Generator, prompts: Sequence[Sequence[Message]], mixtures: Sequence[Mixture | None] = ()
) -> list[str]:
    """Decoding under the protocol; ``mixtures``, if any, has one entry per prompt."""
    if not prompts:
        return []
    mixed: dict[str, Any] = {"mixtures": mixtures} if any(mixtures) else {}
    return [generation.text for generation in answerer.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, **mixed)]


@dataclass(frozen=True)
class Recall:
    """What a store found for one question; ``applies`` is its decision."""

    answer: str | None = None
    confidence: float = 0.0
    applies: bool = False

    @property
    def reply(self) -> Reply:
        """The stored answer where it applies; any other question is left to the uncorrected system."""
        return Reply(self.answer or "" if self.applies else None, self.applies, self.answer, self.confidence)


def filled(replies: Mapping[str, Reply], said: Mapping[str, str]) -> dict[str, Reply]:
    """Replies by question, with what the uncorrected system ``said`` where a question was left to it."""
    return {
        question: replace(reply, text=said[question]) if reply.text is None and question in said else reply
        for question, reply in replies.items()
    }


def text_bytes(*texts: str | None) -> int:
    return sum(len((text or "").encode()) for text in texts)
