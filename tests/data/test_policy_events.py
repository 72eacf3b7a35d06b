"""From an answer's logged choice through a rating to the policy, over a real event log."""

from __future__ import annotations

from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_answer, record_feedback
from pipeline.feedback.keys import Key
from pipeline.memory.policy import Choice, RatedPolicy, shipped_policy
from pipeline.memory.state import FEATURES

ASKER, STRANGER = Key("eva", "ask"), Key("max", "ask", "elsewhere")
STATE = (1.0, *(0.5 for _ in FEATURES[1:]))
CHOICE = Choice("context", 1.0, {"weights": 0.4, "context": 0.6}, STATE)


def rate(log: EventLog, value: float, key: Key = ASKER, choice: Choice | None = CHOICE) -> None:
    answer = record_answer(
        log, key=key, question="Is it?", answer="Yes", strategy="context", choice=choice.body() if choice else None
    )
    record_feedback(log, response_id=str(answer.response_id), kind="rating", value=value, key=key)


def policy_of(log: EventLog) -> RatedPolicy:
    policy = RatedPolicy(0.2)
    policy.apply(log.after(0, kinds=["lesson", "feedback"]))
    return policy


def test_ratings_reach_the_policy_through_the_log_and_a_replay_is_bit_equal(log: EventLog) -> None:
    rate(log, -1.0)
    rate(log, -0.5)
    rate(log, 1.0, choice=None)
    found = policy_of(log)
    before = shipped_policy().probabilities(STATE, ["weights", "context"])["context"]
    assert found.of("default").probabilities(STATE, ["weights", "context"])["context"] < before
    assert policy_of(log).of("default") == found.of("default")
    assert found.applied_seq == log.head()


def test_a_rating_counts_in_its_own_tenant(log: EventLog) -> None:
    rate(log, -1.0, STRANGER)
    assert policy_of(log).of("default") is shipped_policy()
    assert policy_of(log).of("elsewhere") != shipped_policy()
