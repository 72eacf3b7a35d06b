"""The policy: a softmax that ratings move, as a fold of ordered events."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.feedback.records import Event
from pipeline.memory.policy import REACH, Choice, Policy, RatedPolicy, policy_from, shipped_policy
from pipeline.memory.state import FEATURES, STATE_VERSION

ARMS = ("weights", "copy", "context")
FLAT = Policy({name: (0.0,) * len(FEATURES) for name in ARMS}, {name: (0.0,) * len(FEATURES) for name in ARMS})
STATE = tuple(0.1 * number for number in range(1, len(FEATURES) + 1))
states = st.tuples(*[st.floats(-2, 2) for _ in FEATURES])


def rating(
    seq: int, value: float, strategy: str = "copy", *, chance: float = 1.0, answer: str = "", tenant: str = "default"
) -> Event:
    choice = Choice(strategy, chance, dict.fromkeys(ARMS, 1 / 3), STATE).body()
    body: dict[str, Any] = {"kind": "rating", "value": value, "choice": choice}
    return Event("feedback", body, "ada", tenant=tenant, response_id=answer or f"resp_{seq}", seq=seq)


def folded(events: list[Event], rate: float = 0.2) -> RatedPolicy:
    policy = RatedPolicy(rate, FLAT)
    policy.apply(events)
    return policy


@given(states, st.lists(st.sampled_from(ARMS), min_size=1, unique=True))
@settings(max_examples=50, deadline=None)
def test_probabilities_sum_to_one_over_what_is_possible(state: tuple[float, ...], possible: list[str]) -> None:
    found = shipped_policy().probabilities(state, possible)
    assert list(found) == possible
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_good_rating_makes_the_strategy_likelier_in_that_state_and_a_bad_one_less() -> None:
    before = FLAT.probabilities(STATE, ARMS)["copy"]
    assert folded([rating(1, 1.0)]).of("default").probabilities(STATE, ARMS)["copy"] > before
    assert folded([rating(1, -1.0)]).of("default").probabilities(STATE, ARMS)["copy"] < before
    assert folded([rating(1, 0.0)]).of("default").weights == FLAT.weights


def test_a_step_is_the_gradient_of_the_expected_reward() -> None:
    moved = folded([rating(1, 1.0, chance=0.5)], rate=0.01).of("default")

    def expected(weights: dict[str, tuple[float, ...]]) -> float:  # importance-weighted reward of the logged answer
        return Policy(weights, weights).probabilities(STATE, ARMS)["copy"] / 0.5

    bump = 1e-6
    for name in ARMS:
        for place in (0, 5):
            raised = dict(FLAT.weights)
            raised[name] = tuple(w + bump * (i == place) for i, w in enumerate(raised[name]))
            slope = (expected(raised) - expected(dict(FLAT.weights))) / bump
            assert moved.weights[name][place] == pytest.approx(0.01 * slope, rel=1e-3)


@given(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from(ARMS), st.floats(0.1, 1)), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_a_replay_gives_the_same_bits_in_any_paging(rated: list[tuple[float, str, float]]) -> None:
    events = [rating(seq, value, arm, chance=chance) for seq, (value, arm, chance) in enumerate(rated, 1)]
    whole = folded(events)
    paged = RatedPolicy(0.2, FLAT)
    for event in events:
        paged.apply([event])
        paged.apply([event])  # a page read twice changes nothing
    assert paged.of("default").weights == whole.of("default").weights
    assert paged.applied_seq == whole.applied_seq == len(events)


def test_one_rating_counts_per_answer_and_only_in_its_tenant() -> None:
    once, twice = (
        folded([rating(1, -1.0, answer="r")]),
        folded([rating(1, -1.0, answer="r"), rating(2, -1.0, answer="r")]),
    )
    assert once.of("default").weights == twice.of("default").weights
    assert once.of("another") is FLAT


def test_any_number_of_ratings_stays_within_reach_of_the_shipped_weights() -> None:
    moved = folded([rating(seq, -1.0) for seq in range(1, 400)], rate=1.0).of("default")
    length = sum((w - s) ** 2 for name in ARMS for w, s in zip(moved.weights[name], FLAT.weights[name], strict=True))
    assert length**0.5 == pytest.approx(REACH)


def test_what_is_no_rating_of_a_choice_teaches_nothing() -> None:
    plain = Event("feedback", {"kind": "rating", "value": 1.0}, "ada", response_id="r", seq=1)
    comment = Event("feedback", {"kind": "comment", "value": "x", "choice": {}}, "ada", response_id="s", seq=2)
    old = rating(3, 1.0)
    old.body["choice"]["version"] = STATE_VERSION - 1
    policy = folded([plain, comment, old])
    assert (policy.of("default"), policy.applied_seq) == (FLAT, 3)


def test_exploring_draws_from_the_softmax_and_logs_its_chance() -> None:
    draw = random.Random(0)
    weights = {"weights": (2.0, *STATE[1:]), "copy": STATE, "context": STATE}
    policy, state = Policy(weights, weights), (1.0,) + (0.0,) * (len(FEATURES) - 1)
    choices = [policy.choose(state, ARMS, 0.5, draw) for _ in range(4000)]
    for name in ARMS:
        taken = [choice for choice in choices if choice.strategy == name]
        assert len(taken) / len(choices) == pytest.approx(taken[0].chance, abs=0.03)
    assert policy.choose(state, ARMS, 0.0, draw).chance == 1.0


def test_a_policy_of_another_version_is_refused_in_words() -> None:
    saved = {"version": STATE_VERSION + 1, "features": [], "weights": {}}
    with pytest.raises(ValueError, match="fit it again"):
        policy_from(saved)
