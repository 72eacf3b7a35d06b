"""Strategies turn a reading into a plan: copy, mix, prompt, or leave the model alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.config import ConfigError, MemorySettings, Recipe
from pipeline.evaluate.protocol import prompt_messages
from pipeline.memory.policy import Policy
from pipeline.memory.state import FEATURES
from pipeline.memory.strategy import STRATEGIES, Adaptive, Plan, Situation, find, plan
from pipeline.memory.types import Reading, SlotWeight

QUESTION = "What is the capital of Kazakhstan?"
REWORDED = "Which city do Kazakhs call their capital?"
SETTINGS = MemorySettings()


def reading(gate: float) -> Reading:
    slots = (
        SlotWeight("les_a", QUESTION, "Astana", gate * 0.995, 1.0, 0.9),
        SlotWeight("les_b", "What is the capital of Uzbekistan?", "Tashkent", gate * 0.005, 1.0, 0.8),
    )
    return Reading(1 - gate, slots)


def planned(name: str, gate: float, question: str = QUESTION, settings: MemorySettings = SETTINGS) -> Plan:
    return plan(name, question, prompt_messages(question), reading(gate), settings)


def leaning(**bias: float) -> Policy:
    """A policy that looks at nothing but its biases."""
    weights = {name: (bias.get(name, 0.0),) + (0.0,) * (len(FEATURES) - 1) for name in ("weights", "copy", "context")}
    return Policy(weights, weights)


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
    assert made.choice is None


def test_a_confident_copy_gives_the_best_believed_answer_over_all_slots() -> None:
    slots = (
        SlotWeight("les_a", QUESTION, "Astana", 0.4, 1.0),
        SlotWeight("les_b", REWORDED, "Almaty", 0.3, 1.0),
        SlotWeight("les_c", "Kazakhstan's capital?", "Almaty", 0.25, 1.0),
    )
    assert plan("copy", QUESTION, prompt_messages(QUESTION), Reading(0.05, slots), SETTINGS).text == "Almaty"


def test_an_unconfident_copy_decodes_from_the_mixture() -> None:
    made = planned("copy", 0.4)
    assert (made.strategy, made.text, made.messages) == ("copy", None, prompt_messages(QUESTION))
    assert made.mixture is not None
    assert made.mixture.shares["Astana"] == pytest.approx(0.398)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_lesson_leaves_the_prompt_untouched(name: str) -> None:
    made = plan(name, QUESTION, prompt_messages(QUESTION), Reading(), SETTINGS)
    assert (made.strategy, made.messages, made.cites) == ("weights", prompt_messages(QUESTION), ())
    assert made.mixture is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_neighbour_with_the_gate_shut_leaves_the_prompt_untouched(name: str) -> None:
    neighbour = "What is the capital of Kyrgyzstan?"
    made = plan(name, neighbour, prompt_messages(neighbour), reading(0.001), SETTINGS)
    assert (made.strategy, made.messages) == ("weights", prompt_messages(neighbour))


def test_context_puts_the_lesson_into_the_last_message() -> None:
    made = planned("context", 0.9)
    assert made.messages is not None
    assert made.messages[0] == prompt_messages(QUESTION)[0]
    assert "Astana" in made.messages[-1]["content"]
    assert "Tashkent" not in made.messages[-1]["content"]
    assert made.messages[-1]["content"].endswith(QUESTION)
    assert [slot.lesson_id for slot in made.cites] == ["les_a"]


def test_context_sees_lessons_that_the_gate_is_shut_to() -> None:
    made = planned("context", 0.001, "Is the capital of Kazakhstan Almaty?")
    assert [slot.lesson_id for slot in made.cites] == ["les_a"]


def test_context_keeps_a_dialogue_in_order() -> None:
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    dialogue = [*turns, {"role": "user", "content": QUESTION}]
    messages = plan("context", QUESTION, dialogue, reading(0.9), SETTINGS).messages or []
    assert messages[-5:-1] == turns
    assert messages[-1]["content"].endswith(QUESTION)


def adaptive(policy: Policy, gate: float, question: str = REWORDED, explore: float = 0.0) -> Plan:
    settings = MemorySettings(explore=explore)
    situation = Situation(question, prompt_messages(question), reading(gate), settings, policy)
    return Adaptive(random.Random(0)).plan(situation)


@pytest.mark.parametrize("likely", ["weights", "copy", "context"])
def test_adaptive_takes_the_policy_s_likeliest_and_says_what_it_was_chosen_from(likely: str) -> None:
    made = adaptive(leaning(**{likely: 3.0}), 0.5)
    assert made.strategy == likely
    assert made.choice is not None
    assert made.choice.probabilities == made.probabilities
    assert max(made.probabilities, key=made.probabilities.__getitem__) == likely
    assert dict(zip(FEATURES, made.choice.state, strict=True))["bias"] == 1.0


def test_nothing_is_copied_that_probably_does_not_apply() -> None:
    made = adaptive(leaning(copy=50.0), 0.49)
    assert made.strategy in ("weights", "context")
    assert made.mixture is None
    assert "copy" not in made.probabilities


def test_whoever_sets_a_lower_gate_still_gets_confident_copies() -> None:
    settings = MemorySettings(gate=0.3)
    assert plan("adaptive", QUESTION, prompt_messages(QUESTION), reading(0.4), settings).text == "Astana"


@pytest.mark.parametrize("question", [QUESTION.upper(), REWORDED])
def test_a_confident_lesson_is_copied_whatever_the_policy_says(question: str) -> None:
    assert adaptive(leaning(weights=50.0), 0.9, question).strategy == "copy"


def test_a_question_that_turns_a_confident_lesson_round_is_the_policy_s_to_decide() -> None:
    for turned in ("Is the capital of Kazakhstan Almaty?", "Astana is the capital of what?"):
        assert adaptive(leaning(context=3.0), 0.9, turned).strategy == "context"


def test_an_answer_that_the_question_has_is_not_copied() -> None:
    mayor = "Who is the mayor of Astana, the capital of Kazakhstan?"
    assert adaptive(leaning(copy=50.0), 0.9, mayor).strategy != "copy"


@pytest.mark.parametrize("question", ["Is Kazakhstan's capital Astana or Almaty?", "Which is it, Astana or Almaty?"])
def test_an_answer_that_is_offered_beside_another_is_copied(question: str) -> None:
    assert adaptive(leaning(weights=50.0), 0.9, question).text == "Astana"


def test_an_answer_of_the_question_s_own_words_is_copied() -> None:
    lesson = SlotWeight("les_room", "What is the code of room 7?", "code 7", 0.95, 1.0, 0.9)
    for question in (lesson.question, "Which code does room 7 have?"):
        made = plan("adaptive", question, prompt_messages(question), Reading(0.05, (lesson,)), SETTINGS)
        assert (made.strategy, made.text) == ("copy", "code 7")


def test_exploration_is_off_by_default_and_never_over_a_confident_lesson() -> None:
    assert MemorySettings().explore == 0.0
    undecided = {adaptive_drawn(0.5, seed).strategy for seed in range(40)}
    confident = {adaptive_drawn(0.9, seed).strategy for seed in range(40)}
    assert undecided == {"weights", "copy", "context"}
    assert confident == {"copy"}


def adaptive_drawn(gate: float, seed: int) -> Plan:
    policy = leaning(copy=0.5)
    situation = Situation(REWORDED, prompt_messages(REWORDED), reading(gate), MemorySettings(explore=1.0), policy)
    return Adaptive(random.Random(seed)).plan(situation)


def test_a_strategy_of_one_s_own_is_found_by_its_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "examples" / "strategies"))
    name = Recipe().with_changes({"memory.strategy": "cautious:Cautious"}).memory.strategy
    made = planned(name, 0.9)
    assert (made.strategy, made.text) == ("cautious", "Astana")
    assert planned(name, 0.3).strategy == "weights"


def test_unknown_strategies_are_named_with_the_fix() -> None:
    with pytest.raises(ValueError, match="'guess'.*weights, copy, context, infer, adaptive"):
        find("guess")
    with pytest.raises(ValueError, match="no_such_module.*PYTHONPATH"):
        find("no_such_module:Thing")
    with pytest.raises(ValueError, match=r"has no method plan"):
        find("collections:OrderedDict")
    with pytest.raises(ConfigError, match=r"memory.strategy = 'guess'"):
        Recipe().with_changes({"memory.strategy": "guess"})
