"""How memory is used for one answer. A strategy is one small class with a ``plan``; it is found by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Protocol

from pipeline.config import MemorySettings
from pipeline.evaluate.protocol import Message
from pipeline.memory.types import Reading, SlotWeight

CITED = 0.01  # a slot with less weight is not worth a citation
SHOWN = 4  # lessons that fit a prompt


@dataclass(frozen=True)
class Plan:
    """What to do: answer ``text`` as it stands, or else decode ``messages``."""

    strategy: str
    text: str | None
    messages: list[Message] | None
    cites: tuple[SlotWeight, ...] = ()
    probabilities: dict[str, float] = field(default_factory=dict)


class Strategy(Protocol):
    def plan(self, question: str, messages: list[Message], reading: Reading, settings: MemorySettings) -> Plan: ...


class Weights:
    """No memory: the model answers."""

    def plan(self, question: str, messages: list[Message], reading: Reading, settings: MemorySettings) -> Plan:
        return Plan("weights", None, messages, probabilities={"weights": 1.0})


class Copy:
    """A confident reading returns its heaviest lesson's best-believed answer without decoding."""

    def plan(self, question: str, messages: list[Message], reading: Reading, settings: MemorySettings) -> Plan:
        if reading.gate <= settings.gate or not reading.slots:
            return Plan("weights", None, messages, probabilities={"copy": reading.gate, "weights": reading.null_weight})
        probabilities = {"copy": reading.gate, "weights": reading.null_weight}
        return Plan("copy", reading.slots[0].answer, None, cited(reading), probabilities)


class Context:
    """The lessons with weight go into the prompt and the model reasons."""

    def plan(self, question: str, messages: list[Message], reading: Reading, settings: MemorySettings) -> Plan:
        shown = cited(reading)[:SHOWN]
        if not shown:
            return Plan("weights", None, messages, probabilities={"weights": 1.0})
        return Plan("context", None, with_lessons(messages, shown), shown, {"context": 1.0})


class Adaptive:
    """Softmax over strategies from the reading.

    ``copy`` gains with the log-odds c of the gate over its threshold, ``weights`` stands at 0, and ``context`` at
    -|c| - 1: offered where the reading is undecided, chosen by nobody until ratings teach otherwise.
    """

    def plan(self, question: str, messages: list[Message], reading: Reading, settings: MemorySettings) -> Plan:
        confidence = _log_odds(reading.gate) - _log_odds(settings.gate) if reading.slots else -_LARGEST
        probabilities = softmax({"copy": confidence, "weights": 0.0, "context": -abs(confidence) - 1.0})
        chosen = "copy" if confidence > 0 else "weights"
        planned = STRATEGIES[chosen].plan(question, messages, reading, settings)
        return Plan(planned.strategy, planned.text, planned.messages, planned.cites, probabilities)


STRATEGIES: dict[str, Strategy] = {"weights": Weights(), "copy": Copy(), "context": Context(), "adaptive": Adaptive()}


def plan(name: str, question: str, messages: Sequence[Message], reading: Reading, settings: MemorySettings) -> Plan:
    """The plan of the strategy called ``name``."""
    if name not in STRATEGIES:
        raise ValueError(f"memory.strategy = {name!r}: known strategies are {', '.join(STRATEGIES)}")
    return STRATEGIES[name].plan(question, list(messages), reading, settings)


def cited(reading: Reading) -> tuple[SlotWeight, ...]:
    return tuple(slot for slot in reading.slots if slot.weight >= CITED)


def with_lessons(messages: list[Message], shown: Sequence[SlotWeight]) -> list[Message]:
    """The messages with the lessons as notes before the last one."""
    notes = "\n".join(f"{slot.question.rstrip()} {slot.answer}" for slot in shown)
    last = messages[-1]
    content = f"Known facts, more recent than what you learned:\n{notes}\n\n{last['content']}"
    return [*messages[:-1], {**last, "content": content}]


def softmax(scores: dict[str, float]) -> dict[str, float]:
    top = max(scores.values())
    powers = {name: exp(score - top) for name, score in scores.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


_LARGEST = 20.0


def _log_odds(share: float) -> float:
    """log(p / (1 - p)), held within 20 either way."""
    if share <= 0 or share >= 1:
        return _LARGEST if share >= 1 else -_LARGEST
    return max(-_LARGEST, min(_LARGEST, log(share / (1 - share))))
