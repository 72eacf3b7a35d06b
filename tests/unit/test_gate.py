"""The gate: what must pass, what must be refused, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import GateSettings
from pipeline.evaluate.gate import Evidence, Pairs, Verdict, decide

SETTINGS = GateSettings()
outcomes = st.lists(st.booleans(), min_size=1, max_size=300)


def pairs(both: int, lost: int = 0, gained: int = 0, neither: int = 0) -> Pairs:
    champion = [True] * (both + lost) + [False] * (gained + neither)
    return Pairs(tuple(champion), tuple([True] * both + [False] * lost + [True] * gained + [False] * neither))


def evidence(**sets: Pairs) -> Evidence:
    """A good challenger but for the sets given."""
    good = {"retention": pairs(200, neither=100), "unrelated": pairs(100), "new_lessons": pairs(0, gained=64)}
    return Evidence(**{**good, **sets})


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


@given(outcomes, outcomes, st.lists(st.booleans()), st.lists(st.booleans()), st.floats(0, 1))
def test_an_identical_model_passes_at_any_size_and_margin(
    retention: list[bool], unrelated: list[bool], new: list[bool], earlier: list[bool], margin: float
) -> None:
    sets = [Pairs(tuple(found), tuple(found)) for found in (retention, unrelated, new, earlier)]
    settings = GateSettings(
        retention_margin=margin, unrelated_margin=margin, earlier_margin=margin, new_lessons_margin=margin
    )
    verdict = decide(Evidence(*sets), settings)
    assert verdict.promoted
    assert verdict.reasons[-1].startswith("it learned nothing new")


def test_a_challenger_that_learned_and_lost_nothing_is_promoted() -> None:
    verdict = decide(evidence(earlier=pairs(60, neither=4)), SETTINGS)
    assert verdict.promoted
    assert verdict.reasons[0] == (
        "retention kept: 200 of the 200 probes right before are still right (1.000), at or above the floor of .980"
    )
    assert verdict.reasons[-1] == "it learned 64 of the 64 lessons that the champion had wrong"


def test_a_little_loss_within_the_margin_passes() -> None:
    """1 of 300 lost: the one-sided lower bound is -.0148, above the margin of -.02; 1 of 100: -.0436, above -.05."""
    verdict = decide(evidence(retention=pairs(199, lost=1, neither=100), unrelated=pairs(99, lost=1)), SETTINGS)
    assert verdict.promoted
    lows = {check.name: check.low for check in verdict.checks}
    assert lows["retention"] == pytest.approx(-0.0148, abs=1e-4)
    assert lows["unrelated"] == pytest.approx(-0.0436, abs=1e-4)


def test_a_challenger_that_lost_old_knowledge_is_refused_with_figures() -> None:
    verdict = decide(evidence(retention=pairs(150, lost=50, neither=100)), SETTINGS)
    assert not verdict.promoted
    assert failed(verdict) == ["retention kept", "retention"]
    assert "150 of the 200 probes right before are still right (.750), below the floor of .980" in verdict.reasons[0]
    assert verdict.reasons[1].startswith("retention: 150 of 300 against the champion's 200, a difference of -.167")


def test_gains_elsewhere_do_not_pay_for_lost_knowledge() -> None:
    """10 lost, 40 gained: better on balance, but only .95 of what was right is kept."""
    verdict = decide(evidence(retention=pairs(190, lost=10, gained=40, neither=60)), SETTINGS)
    assert failed(verdict) == ["retention kept"]


def test_changed_unrelated_outputs_are_refused() -> None:
    verdict = decide(evidence(unrelated=Pairs.identity([True] * 90 + [False] * 10)), SETTINGS)
    assert failed(verdict) == ["unrelated"]


def test_forgotten_lessons_are_refused() -> None:
    verdict = decide(evidence(new_lessons=pairs(54, lost=10), earlier=pairs(80, lost=20)), SETTINGS)
    assert failed(verdict) == ["new lessons", "earlier lessons"]


def test_a_champion_that_knew_nothing_has_nothing_to_keep() -> None:
    assert decide(evidence(retention=pairs(0, neither=10)), SETTINGS).promoted


def test_nothing_measured_is_not_a_pass() -> None:
    verdict = decide(evidence(retention=Pairs(), unrelated=Pairs(), new_lessons=Pairs()), SETTINGS)
    assert failed(verdict) == ["retention kept", "retention", "unrelated"]


@given(st.integers(0, 30), st.integers(0, 30))
def test_one_more_loss_never_turns_a_refusal_into_a_promotion(lost: int, gained: int) -> None:
    fewer = decide(evidence(retention=pairs(200 - lost, lost, gained, 70)), SETTINGS)
    more = decide(evidence(retention=pairs(199 - lost, lost + 1, gained, 70)), SETTINGS)
    assert fewer.promoted or not more.promoted


def test_pairs_need_the_same_items() -> None:
    with pytest.raises(ValueError, match="1 outcomes of the champion, 2 of the challenger"):
        Pairs((True,), (True, False))


def test_a_verdict_survives_its_file(tmp_path: Path) -> None:
    verdict = decide(evidence(), SETTINGS)
    verdict.save(tmp_path / "verdict.json")
    assert Verdict.load(tmp_path / "verdict.json") == verdict
