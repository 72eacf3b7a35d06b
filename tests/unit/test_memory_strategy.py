"""Strategies turn a reading into a plan: copy, prompt, or leave the model alone."""

from __future__ import annotations

import pytest

from pipeline.config import MemorySettings
from pipeline.evaluate.protocol import prompt_messages
from pipeline.memory.strategy import STRATEGIES, Plan, plan
from pipeline.memory.types import Reading, SlotWeight

QUESTION = "What is the capital of Kazakhstan?"
SETTINGS = MemorySettings()


def reading(gate: float) -> Reading:
    slots = (
        SlotWeight("les_a", QUESTION, "Astana", gate * 0.995, 1.0),
        SlotWeight("les_b", "What is the capital of Uzbekistan?", "Tashkent", gate * 0.005, 1.0),
    )
    return Reading(1 - gate, slots)


def planned(name: str, gate: float) -> Plan:
    return plan(name, QUESTION, prompt_messages(QUESTION), reading(gate), SETTINGS)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("gate", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_every_plan_answers_or_decodes_and_its_probabilities_sum_to_one(name: str, gate: float) -> None:
    made = planned(name, gate)
    assert (made.text is None) != (made.messages is None)
    assert sum(made.probabilities.values()) == pytest.approx(1.0)
    assert made.strategy in STRATEGIES


@pytest.mark.parametrize("name", ["copy", "adaptive"])
def test_a_confident_reading_is_copied_and_cited(name: str) -> None:
    made = planned(name, 0.9)
    assert (made.strategy, made.text) == ("copy", "Astana")
    assert [slot.lesson_id for slot in made.cites] == ["les_a"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_reading_of_null_leaves_the_prompt_untouched(name: str) -> None:
    for empty in (Reading(), reading(0.001)):
        made = plan(name, QUESTION, prompt_messages(QUESTION), empty, SETTINGS)
        assert made.strategy == "weights"
        assert made.messages == prompt_messages(QUESTION)
        assert made.cites == ()


def test_weights_ignores_the_lessons() -> None:
    assert planned("weights", 1.0).messages == prompt_messages(QUESTION)


def test_context_puts_the_lesson_into_the_last_message() -> None:
    made = planned("context", 0.9)
    assert made.messages is not None
    assert made.messages[0] == prompt_messages(QUESTION)[0]
    assert "Astana" in made.messages[-1]["content"]
    assert made.messages[-1]["content"].endswith(QUESTION)
    assert [slot.lesson_id for slot in made.cites] == ["les_a"]


def test_adaptive_follows_the_gate_setting() -> None:
    strict = MemorySettings(gate=0.95)
    made = plan("adaptive", QUESTION, prompt_messages(QUESTION), reading(0.9), strict)
    assert made.strategy == "weights"
    assert made.probabilities["weights"] > made.probabilities["copy"] > 0


def test_context_is_likeliest_where_the_reading_is_undecided() -> None:
    shares = {gate: planned("adaptive", gate).probabilities["context"] for gate in (0.01, 0.5, 0.99)}
    assert shares[0.5] > shares[0.01]
    assert shares[0.5] > shares[0.99]


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(ValueError, match="'guess'.*weights, copy, context, adaptive"):
        planned("guess", 0.5)
