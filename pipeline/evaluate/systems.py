"""Systems that can be corrected, behind one seam: ``teach`` a lesson, ``ask`` questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from pipeline.config import MemorySettings, Recipe
from pipeline.data.lines import LessonLine
from pipeline.evaluate.protocol import MAX_NEW_TOKENS, Message, prompt_messages
from pipeline.memory.types import question_key

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.memory.store import LessonMemory


class Generated(Protocol):
    @property
    def text(self) -> str: ...


class Generator(Protocol):
    """The part of the answerer that decodes greedily."""

    def generate(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int | None = None
    ) -> Sequence[Generated]: ...


class System(Protocol):
    """What a stream is played to."""

    def teach(self, line: LessonLine) -> None: ...

    def ask(self, questions: Sequence[str]) -> list[str]: ...


class Uncorrected:
    """The model as it is: lessons change nothing. Its answers never change either, so each is generated once."""

    def __init__(self, answerer: Generator) -> None:
        self.answerer = answerer
        self._answers: dict[str, str] = {}

    def teach(self, line: LessonLine) -> None:
        """Nothing is learned."""

    def ask(self, questions: Sequence[str]) -> list[str]:
        new = [question for question in dict.fromkeys(questions) if question not in self._answers]
        answers = generate(self.answerer, [prompt_messages(question) for question in new])
        self._answers.update(zip(new, answers, strict=True))
        return [self._answers[question] for question in questions]


class ExactMatch:
    """A dictionary from question to answer before the model: what memory is worth when nobody rephrases."""

    def __init__(self, uncorrected: System) -> None:
        self._uncorrected = uncorrected
        self._answers: dict[str, str] = {}

    def teach(self, line: LessonLine) -> None:
        self._answers[question_key(line.question)] = line.answer

    def ask(self, questions: Sequence[str]) -> list[str]:
        known = [self._answers.get(question_key(question)) for question in questions]
        return _fill(questions, known, self._uncorrected)


class Memory:
    """The product in one process: lesson memory, strategy, answerer. Only question and answer are taught."""

    def __init__(
        self, memory: LessonMemory, answerer: Generator, uncorrected: System, settings: MemorySettings
    ) -> None:
        self._memory = memory
        self._answerer = answerer
        self._uncorrected = uncorrected
        self._settings = settings

    def teach(self, line: LessonLine) -> None:
        from pipeline.memory.belief import taught_event

        self._memory.apply([taught_event(line, self._memory.applied_seq + 1)])

    def ask(self, questions: Sequence[str]) -> list[str]:
        from pipeline.memory.strategy import plan
        from pipeline.memory.types import Viewer

        readings = self._memory.read(questions, [Viewer()] * len(questions))
        plans = [
            plan(self._settings.strategy, question, prompt_messages(question), reading, self._settings)
            for question, reading in zip(questions, readings, strict=True)
        ]
        answers = [plan.text for plan in plans]
        told = [i for i, plan in enumerate(plans) if plan.messages and plan.messages != prompt_messages(questions[i])]
        for i, text in zip(told, generate(self._answerer, [plans[i].messages or [] for i in told]), strict=True):
            answers[i] = text
        return _fill(questions, answers, self._uncorrected)


@dataclass(frozen=True)
class Bench:
    """What systems are built from: one answerer, shared, and a way to make an empty lesson memory."""

    answerer: Generator
    uncorrected: Uncorrected
    settings: MemorySettings
    empty_memory: Callable[[], LessonMemory]


SYSTEMS: dict[str, Callable[[Bench], System]] = {
    "uncorrected": lambda bench: bench.uncorrected,
    "memory": lambda bench: Memory(bench.empty_memory(), bench.answerer, bench.uncorrected, bench.settings),
    "exact_match": lambda bench: ExactMatch(bench.uncorrected),
}


def make_bench(recipe: Recipe, answerer: Generator, router: Mapping[str, Tensor] | None = None) -> Bench:
    """A bench around a loaded answerer; ``router`` is the bundle's, empty or ``None`` for the shipped one."""
    empty_memory = partial(_empty_memory, recipe, router or None)
    return Bench(answerer, Uncorrected(answerer), recipe.memory, empty_memory)


def build_systems(names: Sequence[str], bench: Bench) -> dict[str, System]:
    """The systems called ``names``, each taught nothing yet."""
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown or not names:
        raise ValueError(f"systems = {', '.join(unknown) or 'none'}: known systems are {', '.join(SYSTEMS)}")
    return {name: SYSTEMS[name](bench) for name in names}


def generate(answerer: Generator, prompts: Sequence[Sequence[Message]]) -> list[str]:
    """Decoding under the protocol."""
    if not prompts:
        return []
    return [generation.text for generation in answerer.generate(prompts, max_new_tokens=MAX_NEW_TOKENS)]


def _fill(questions: Sequence[str], answers: Sequence[str | None], fallback: System) -> list[str]:
    """``answers`` with those that are missing asked of ``fallback``."""
    missing = [question for question, answer in zip(questions, answers, strict=True) if answer is None]
    rest = iter(fallback.ask(missing) if missing else [])
    return [next(rest) if answer is None else answer for answer in answers]


def _empty_memory(recipe: Recipe, router: Mapping[str, Tensor] | None) -> LessonMemory:
    from pipeline.memory.router import load_router
    from pipeline.memory.store import LessonMemory
    from pipeline.model.encoder import load_encoder

    return LessonMemory(load_encoder(recipe.model.encoder), load_router(router), recipe.memory)
