"""How memory is used for one answer. A strategy is one small class with a ``plan``, found by its name.

The five that ship are called ``weights``, ``copy``, ``context``, ``infer`` and ``adaptive``; any other is named
``package.module:Class`` in the recipe (``memory.strategy``).
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Protocol

from pipeline.config import MemorySettings
from pipeline.evaluate.protocol import Message, normalise
from pipeline.memory.context import Form, with_lessons
from pipeline.memory.mixture import Mixture, mixture_of
from pipeline.memory.policy import Choice, Policy, shipped_policy
from pipeline.memory.state import SHOWN, form_of, relevant, state_of
from pipeline.memory.tense import asks_earlier
from pipeline.memory.types import Reading, SlotWeight, question_key

CITED = 0.01  # a slot with less weight is not worth a citation
INFERRED = 0.95  # the share of an inference among offered options: taken for right, and not for certain
EVEN = 0.5  # below this gate it is likelier that no lesson applies


@dataclass(frozen=True)
class Situation:
    """One question with everything that a strategy may look at."""

    question: str
    messages: list[Message]
    reading: Reading
    settings: MemorySettings
    policy: Policy = field(default_factory=lambda: shipped_policy())

    @property
    def confident(self) -> bool:
        """Whether the weight on lessons exceeds ``memory.gate``."""
        return bool(self.reading.slots) and self.reading.gate > self.settings.gate

    @property
    def verbatim(self) -> bool:
        """Whether a lesson applies confidently and the question is asked in its own words."""
        return self.confident and question_key(self.question) == question_key(self.reading.slots[0].question)

    @property
    def earlier(self) -> bool:
        """Whether the question asks how it was before what the likeliest lesson says."""
        return bool(self.reading.slots) and asks_earlier(self.question, self.reading.slots[0].question)

    @cached_property
    def form(self) -> Form | None:
        """How the question turns the likeliest lesson round; ``None`` without a lesson."""
        return form_of(self.question, self.reading.slots[0]) if self.reading.slots else None

    @property
    def settled(self) -> bool:
        """Whether a lesson applies confidently and the question does not turn it round: there is nothing to choose."""
        return self.confident and (self.verbatim or self.form == "plain")

    @property
    def inferable(self) -> bool:
        """Whether something follows from lessons, and no other lesson answers the question itself."""
        inferred = self.reading.inferred
        if inferred is None or self.verbatim:
            return False
        return not self.settled or self.reading.slots[0].lesson_id in inferred.lesson_ids


@dataclass(frozen=True)
class Plan:
    """What to do: answer ``text`` as it stands, or else decode ``messages``, from the ``mixture`` if there is one."""

    strategy: str
    text: str | None = None
    messages: list[Message] | None = None
    cites: tuple[SlotWeight, ...] = ()
    probabilities: dict[str, float] = field(default_factory=dict)
    mixture: Mixture | None = None
    choice: Choice | None = None  # what ratings of the answer teach the policy

    def rests_on_lessons(self, text: str) -> bool:
        """Whether the answer came from lessons: from a mixture, if it is one of theirs."""
        if self.mixture is None:
            return bool(self.cites)
        return normalise(text) in map(normalise, self.mixture.shares)


class Strategy(Protocol):
    def plan(self, asked: Situation) -> Plan: ...


class Weights:
    """No memory: the model answers."""

    def plan(self, asked: Situation) -> Plan:
        return Plan("weights", messages=asked.messages, probabilities={"weights": 1.0})


class Copy:
    """The mixture of sequences (:mod:`pipeline.memory.mixture`).

    A confident reading gives the best-believed answer without decoding; any other is decoded from the mixture.
    """

    def plan(self, asked: Situation) -> Plan:
        cites, mixture = cited(asked.reading), mixture_of(asked.reading)
        if not cites or not mixture.shares:
            return WEIGHTS.plan(asked)
        shares = {"copy": asked.reading.gate, "weights": asked.reading.null_weight}
        if asked.confident:
            return Plan("copy", mixture.best, None, cites, shares, mixture)
        return Plan("copy", None, asked.messages, cites, shares, mixture)


class Context:
    """The lessons that bear on the question go into the prompt and the model reasons."""

    def plan(self, asked: Situation) -> Plan:
        shown = relevant(asked.question, asked.reading)[:SHOWN]
        if not shown:
            return WEIGHTS.plan(asked)
        messages = with_lessons(asked.messages, shown, form_of(asked.question, shown[0]))
        return Plan("context", None, messages, tuple(shown), {"context": 1.0})


class Infer:
    """What follows from lessons by their words (:mod:`pipeline.memory.infer`); else no memory."""

    def plan(self, asked: Situation) -> Plan:
        inferred = asked.reading.inferred
        if inferred is None:
            return WEIGHTS.plan(asked)
        cites = tuple(slot for slot in asked.reading.slots if slot.lesson_id in inferred.lesson_ids)
        return Plan("infer", inferred.text, None, cites, {"infer": 1.0}, Mixture({inferred.text: INFERRED}))


class Adaptive:
    """A softmax over the first three from the question's state, learned from ratings (:mod:`pipeline.memory.policy`).

    The likeliest strategy answers, or with chance ``memory.explore`` one drawn from the softmax. What follows from
    lessons is said without asking the policy. So is a confident lesson, unless the question turns it round (yes or no,
    reversed), and nothing is drawn over one.
    """

    def __init__(self, draw: random.Random | None = None) -> None:
        self._draw = draw or random.Random()

    def plan(self, asked: Situation) -> Plan:
        if asked.inferable:
            return INFER.plan(asked)
        plans = possible(asked)
        if "copy" in plans and asked.settled:
            return replace(plans["copy"], probabilities={"copy": 1.0})
        if list(plans) == ["weights"]:
            return plans["weights"]
        state = state_of(asked.question, asked.reading, asked.settings)
        explore = 0.0 if asked.confident else asked.settings.explore
        choice = asked.policy.choose(state, list(plans), explore, self._draw)
        chosen = plans[choice.strategy]
        return replace(chosen, probabilities=choice.probabilities, choice=choice)


WEIGHTS, COPY, CONTEXT, INFER = Weights(), Copy(), Context(), Infer()
ARMS: tuple[Strategy, ...] = (WEIGHTS, COPY, CONTEXT)
STRATEGIES: dict[str, Strategy] = {
    "weights": WEIGHTS, "copy": COPY, "context": CONTEXT, "infer": INFER, "adaptive": Adaptive(),
}  # fmt: skip


def possible(asked: Situation) -> dict[str, Plan]:
    """What :class:`Adaptive` chooses from by its policy, by name.

    No lesson says how it was before. And nothing is copied that more likely than not does not apply: where the model
    is unsure of its own answer, a small share of the mixture would decide, and a neighbour of the lesson would get the
    lesson's answer. Nor is an answer that the question itself has ("Who succeeded Naruhito?").
    """
    if asked.earlier:
        return {"weights": WEIGHTS.plan(asked)}
    copies = (asked.confident or asked.reading.gate >= EVEN) and asked.form != "reversed"
    arms = ARMS if copies else (WEIGHTS, CONTEXT)
    return {plan.strategy: plan for plan in (strategy.plan(asked) for strategy in arms)}


@lru_cache(maxsize=64)
def find(name: str) -> Strategy:
    """The strategy called ``name``: one that ships, or ``package.module:Class``, imported and made once."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        known = ", ".join(STRATEGIES)
        raise ValueError(f"memory.strategy = {name!r}: known strategies are {known}, or package.module:Class")
    try:
        made: Strategy = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"memory.strategy = {name!r}: {error}; is the module on PYTHONPATH?") from error
    if not callable(getattr(made, "plan", None)):
        raise ValueError(f"memory.strategy = {name!r}: {attribute} has no method plan(asked)")
    return made


def plan(
    name: str,
    question: str,
    messages: Sequence[Message],
    reading: Reading,
    settings: MemorySettings,
    policy: Policy | None = None,
) -> Plan:
    """The plan of the strategy called ``name``; ``policy`` is the shipped one unless given."""
    asked = Situation(question, list(messages), reading, settings, policy or shipped_policy())
    return find(name).plan(asked)


def cited(reading: Reading) -> tuple[SlotWeight, ...]:
    return tuple(slot for slot in reading.slots if slot.weight >= CITED)
