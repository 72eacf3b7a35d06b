"""Equation 3 on the slots: evidence counts, teachers supersede, a replay gives the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import MemorySettings
from pipeline.feedback.records import Event, Role
from pipeline.memory.belief import Fold, fold, slot_id
from pipeline.memory.ledger import PRIOR_SUPPORT, Ledger, Vote, born, moved, step_size
from pipeline.memory.trust import FLOOR, Sources
from pipeline.memory.types import Viewer, moment, question_key

QUESTION = "What is the capital of Kazakhstan?"
GLOBAL = slot_id("default", "global", "", QUESTION)


def correct(seq: int, answer: str, *, source: str = "ada", role: Role = "teach", **changes: Any) -> Event:
    """A correction of the one question: a teacher's goes to the global slot, an asker's to the asker's own."""
    scope, owner = ("user", source) if role == "ask" else ("global", "")
    question = changes.pop("question", QUESTION)
    tenant = changes.pop("tenant", "default")
    lesson_id = changes.pop("lesson_id", slot_id(tenant, scope, owner, question))
    body = {"op": "correct", "lesson_id": lesson_id, "question": question, "answer": answer, **changes}
    return Event(
        kind="lesson", body=body, source=source, role=role, tenant=tenant, scope=scope, scope_id=owner, seq=seq
    )  # type: ignore[arg-type]


def rate(seq: int, answer: str, value: int, *, source: str, role: Role = "ask", lesson_id: str = GLOBAL) -> Event:
    body = {"op": "rate", "lesson_id": lesson_id, "question": QUESTION, "answer": answer, "value": value}
    return Event(kind="lesson", body=body, source=source, role=role, scope="user", scope_id=source, seq=seq)


def expire(
    seq: int, expires: str | None, *, source: str = "ada", role: Role = "teach", lesson_id: str = GLOBAL
) -> Event:
    body = {"op": "expire", "lesson_id": lesson_id, "expires": expires}
    return Event(kind="lesson", body=body, source=source, role=role, seq=seq)


def retract(seq: int, *, source: str, role: Role, lesson_id: str = GLOBAL, tenant: str = "default") -> Event:
    body = {"op": "retract", "lesson_id": lesson_id}
    return Event(kind="lesson", body=body, source=source, role=role, tenant=tenant, seq=seq)


@pytest.mark.parametrize("times", [4, 16])
def test_a_key_rewritten_by_teachers_holds_the_last_answer(times: int) -> None:
    events = [correct(seq, f"city {seq}") for seq in range(1, times + 1)]
    (lesson,) = fold(events).values()
    assert lesson.answer == f"city {times}"
    assert lesson.belief == 1.0
    assert lesson.previous == f"city {times - 1}"


def test_two_vandals_do_not_beat_a_thousand_supporters() -> None:
    events = [correct(seq, "Astana", source=f"user {seq}", role="ask") for seq in range(1, 1001)]
    events += [correct(1000 + n, "Nowhere", source=f"vandal {n}", role="ask") for n in (1, 2)]
    lesson = fold(events)[GLOBAL]
    assert lesson.answer == "Astana"
    assert lesson.belief > 0.9
    assert lesson.beliefs["Nowhere"] < 0.05


def test_a_vandal_who_posts_ten_times_has_one_vote() -> None:
    once = [correct(1, "Astana"), correct(2, "Nowhere", source="vandal", role="ask")]
    ten = [correct(1, "Astana")] + [correct(seq, "Nowhere", source="vandal", role="ask") for seq in range(2, 12)]
    assert fold(ten)[GLOBAL].beliefs == fold(once)[GLOBAL].beliefs
    assert fold(ten)[GLOBAL].answer == "Astana"


def test_supporters_who_change_their_minds_count_for_what_they_say_last() -> None:
    first = [correct(seq, "Almaty", source=f"user {seq}", role="ask") for seq in range(1, 11)]
    second = [correct(10 + seq, "Astana", source=f"user {seq}", role="ask") for seq in range(1, 11)]
    changed = fold(first + second)[GLOBAL]
    assert changed.answer == "Astana"
    assert "Almaty" not in changed.beliefs


def test_a_step_of_one_is_an_overwrite() -> None:
    vote = Vote("ada", "Astana", 1, 1.0)
    assert moved({"Almaty": 0.7, "Astana": 0.2}, vote, alpha=1.0) == {"Almaty": 0.0, "Astana": 1.0}


_votes = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz"), st.sampled_from([1.0, -1.0]), st.floats(0.01, 2.0)),
    max_size=40,
)


@given(_votes, st.booleans(), st.floats(0.001, 1.0))
@settings(deadline=None)
def test_beliefs_stay_a_sub_distribution(
    votes: list[tuple[str, str, float, float]], taught: bool, alpha_min: float
) -> None:
    ledger = born("x", alpha_min) if taught else Ledger(alpha_min=alpha_min)
    for vote in votes:
        ledger.add(Vote(*vote))
        assert all(-1e-12 <= belief <= 1 + 1e-12 for belief in ledger.beliefs.values())
        assert sum(ledger.beliefs.values()) <= 1 + 1e-9


@given(_votes, st.booleans(), st.lists(st.booleans(), min_size=40, max_size=40))
@settings(deadline=None)
def test_a_ledger_depends_on_its_standing_votes_alone(
    votes: list[tuple[str, str, float, float]], taught: bool, looked: list[bool]
) -> None:
    """However often it was looked at between changes of mind: bit for bit what the standing votes give, in order."""
    ledger = born("x") if taught else Ledger()
    for vote, look in zip(votes, looked, strict=False):
        ledger.add(Vote(*vote))
        if look:
            assert ledger.beliefs is not None
    fresh = born("x") if taught else Ledger()
    for standing in ledger.votes.values():
        fresh.add(standing)
    assert fresh.beliefs == ledger.beliefs
    assert fresh.best == ledger.best
    assert [step.beliefs for step in ledger.steps()][-1:] == [ledger.beliefs][: len(ledger.votes)]
    assert [fresh.candidate(answer) for answer in "xyz"] == [ledger.candidate(answer) for answer in "xyz"]


def test_the_step_size_is_the_trust_over_all_support_and_never_below_its_floor() -> None:
    assert step_size(Vote("a", "x", 1, 1.0), 2.0, 0.02) == 1 / 3
    assert step_size(Vote("a", "x", -1, 0.5), 2.0, 0.02) == 0.2
    assert step_size(Vote("a", "x", 1, 1.0), 1e6, 0.02) == 0.02


@given(st.integers(1, 400), st.floats(0.1, 1.0))
def test_without_a_floor_askers_of_full_trust_are_averaged(count: int, share: float) -> None:
    """alpha = 1 / (support + 1) makes the delta rule a running mean, whatever the order."""
    ledger, wanted = Ledger(alpha_min=1e-9), round(share * count)
    for number in range(count):
        ledger.add(Vote(f"user {number}", "x" if number < wanted else "y", 1, 1.0))
    assert ledger.beliefs.get("x", 0.0) == pytest.approx(wanted / (PRIOR_SUPPORT + count))


_steps = st.lists(
    st.tuples(
        st.sampled_from(["correct", "correct", "rate", "retract", "expire"]),
        st.sampled_from(["ada", "ben", "cy"]),
        st.sampled_from(["ask", "teach", "admin"]),
        st.sampled_from(["Astana", "Almaty", "Nowhere"]),
        st.sampled_from([-1, 1]),
    ),
    max_size=25,
)


def _events(steps: list[tuple[str, str, Role, str, int]]) -> list[Event]:
    made = []
    for seq, (op, source, role, answer, value) in enumerate(steps, 1):
        if op == "correct":
            made.append(correct(seq, answer, source=source, role=role))
        elif op == "rate":
            made.append(rate(seq, answer, value, source=source, role=role))
        elif op == "expire":
            made.append(expire(seq, "2027-01-31" if value > 0 else None, source=source, role=role))
        else:
            made.append(retract(seq, source=source, role=role))
    return made


@given(_steps, st.integers(0, 25))
@settings(deadline=None)
def test_a_replay_is_bit_equal_however_it_is_cut(steps: list[tuple[str, str, Role, str, int]], cut: int) -> None:
    events = _events(steps)
    state = Fold()
    for event in events[:cut]:
        state.step(event)
    for event in events[cut:]:
        state.step(event)
    assert {key: slot.lesson for key, slot in state.slots.items()} == fold(events)


def test_an_askers_correction_is_right_in_the_askers_scope_and_evidence_for_all() -> None:
    lessons = fold([correct(1, "Almaty"), correct(2, "Astana", source="ben", role="ask", lesson_id=GLOBAL)])
    own = next(lesson for lesson in lessons.values() if lesson.scope == "user")
    assert (own.answer, own.belief, own.scope_id) == ("Astana", 1.0, "ben")
    assert own.lesson_id == slot_id("default", "user", "ben", QUESTION)
    everybody = lessons[GLOBAL]
    assert everybody.answer == "Almaty"
    assert 0 < everybody.beliefs["Astana"] < everybody.beliefs["Almaty"] < 1
    assert own.visible_to(Viewer(user="ben"))
    assert not own.visible_to(Viewer(user="cy"))


def test_askers_alone_make_a_lesson_for_all_when_three_agree() -> None:
    two = [correct(seq, "Astana", source=f"user {seq}", role="ask") for seq in (1, 2)]
    assert not fold(two)[GLOBAL].believed
    assert fold([*two, correct(3, "Astana", source="user 3", role="ask")])[GLOBAL].believed


def test_a_teacher_supersedes_askers_at_once_and_more_than_ten_askers_overturn_a_teacher() -> None:
    asked = [correct(seq, "Nowhere", source=f"user {seq}", role="ask") for seq in range(1, 30)]
    taught = [*asked, correct(30, "Astana")]
    assert fold(taught)[GLOBAL].beliefs == {"Astana": 1.0}
    against = [correct(30 + n, "Almaty", source=f"late {n}", role="ask") for n in range(1, 12)]
    assert fold([*taught, *against[:10]])[GLOBAL].answer == "Astana"
    assert fold([*taught, *against])[GLOBAL].answer == "Almaty"


def test_ratings_move_the_belief_in_the_rated_answer() -> None:
    start = fold([correct(1, "Astana")])[GLOBAL].belief
    down = fold([correct(1, "Astana"), rate(2, "Astana", -1, source="ben")])[GLOBAL]
    up = fold([correct(1, "Astana"), rate(2, "Astana", -1, source="ben"), rate(3, "Astana", 1, source="cy")])[GLOBAL]
    assert down.belief < up.belief < start
    assert down.believed


def test_the_owner_of_a_private_lesson_rates_it_away_at_once() -> None:
    own = slot_id("default", "user", "ben", QUESTION)
    events = [correct(1, "Astana", source="ben", role="ask"), rate(2, "Astana", -1, source="ben", lesson_id=own)]
    assert not fold(events)[own].believed


def test_retraction_takes_a_teacher_and_stays_in_the_tenant() -> None:
    taught = correct(1, "Astana")
    assert GLOBAL in fold([taught, retract(2, source="ben", role="ask")])
    assert GLOBAL in fold([taught, retract(2, source="eve", role="admin", tenant="other")])
    assert GLOBAL not in fold([taught, retract(2, source="ada", role="teach")])


def test_another_tenants_correction_of_the_slot_changes_nothing() -> None:
    events = [correct(1, "Astana"), correct(2, "Nowhere", tenant="other", lesson_id=GLOBAL)]
    assert fold(events)[GLOBAL].answer == "Astana"


def test_the_wording_that_was_corrected_becomes_a_phrasing() -> None:
    again = correct(2, "Astana", question="Which city governs Kazakhstan?", lesson_id=GLOBAL)
    assert fold([correct(1, "Almaty"), again])[GLOBAL].paraphrases == ("Which city governs Kazakhstan?",)


def test_other_kinds_of_events_are_not_lessons() -> None:
    assert fold([replace(correct(1, "Astana"), kind="answer")]) == {}


def test_trust_scales_an_askers_vote() -> None:
    events = [correct(1, "Almaty"), correct(2, "Astana", source="ben", role="ask")]
    full = fold(events)[GLOBAL].beliefs["Astana"]
    half = fold(events, MemorySettings(trust={"ask": 0.5, "teach": 1.0, "admin": 1.0}))[GLOBAL].beliefs["Astana"]
    assert 0 < half < full


def test_a_thousand_changes_of_mind_are_counted_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [correct(seq, "Almaty", source=f"user {seq}", role="ask") for seq in range(1, 1001)]
    second = [correct(1000 + seq, "Astana", source=f"user {seq}", role="ask") for seq in range(1, 1001)]
    state, counted = Fold(), []
    after = Ledger._after
    monkeypatch.setattr(Ledger, "_after", lambda *args: counted.append(1) or after(*args))
    for event in first + second:
        state.step(event)
    assert state.slots[GLOBAL].lesson.answer == "Astana"
    assert len(counted) <= 2 * 1000, "each standing vote once, and each new one once"


def test_spellings_of_one_answer_are_one_candidate() -> None:
    said = ["Astana", "astana", " ASTANA. "]
    lesson = fold([correct(seq, text, source=f"user {seq}", role="ask") for seq, text in enumerate(said, 1)])[GLOBAL]
    assert list(lesson.beliefs) == ["Astana"]
    assert lesson.believed


def test_a_source_that_teachers_contradict_loses_trust_and_one_that_they_confirm_gains_it() -> None:
    state = Fold()
    for number in range(6):
        question, start = f"Question {number}?", 10 * number
        for seq, (source, answer) in enumerate([("liar", "wrong"), ("sage", "right")], start + 1):
            state.step(correct(seq, answer, source=source, role="ask", question=question))
        state.step(correct(start + 3, "right", question=question))
    assert state.sources.multiplier("default", "liar") == 2 * 2 / (2 + 2 + 6)
    assert state.sources.multiplier("default", "sage") == 2 * 8 / (8 + 2)
    assert state.sources.multiplier("default", "stranger") == 1.0
    assert state.sources.multiplier("other tenant", "liar") == 1.0
    for seq, source in ((100, "liar"), (101, "sage")):
        state.step(correct(seq, f"as {source} says", source=source, role="ask"))
    explained = state.explain(GLOBAL)
    assert explained is not None
    assert [step.trust for step in explained.evidence] == [0.4, 1.6]
    assert state.slots[GLOBAL].lesson.answer == "as sage says"


def test_trust_has_a_floor_and_a_ceiling() -> None:
    sources = Sources(prior=2.0)
    for _ in range(1000):
        sources.judge("t", [Vote("liar", "x", 1, 1.0), Vote("sage", "x", -1, 1.0)], "y", settled_by="ada")
    assert sources.multiplier("t", "liar") == FLOOR
    assert 1.9 < sources.multiplier("t", "sage") < 2.0


def test_askers_settle_a_slot_as_a_teacher_would_and_late_agreement_earns_nothing() -> None:
    state = Fold()
    said = [("vandal", "Nowhere"), *((f"user {n}", "Astana") for n in range(1, 21))]
    for seq, (source, answer) in enumerate(said, 1):
        state.step(correct(seq, answer, source=source, role="ask"))
    assert state.sources.multiplier("default", "vandal") < 1
    confirmed = [source for source, _ in said if state.sources.multiplier("default", source) > 1]
    assert confirmed == [f"user {n}" for n in range(1, 11)], "those before the eleventh, whose vote settled it"


def test_an_explanation_is_the_ordered_evidence_with_its_arithmetic() -> None:
    state = Fold()
    for event in (
        correct(1, "Almaty"),
        correct(2, "Astana", source="ben", role="ask", lesson_id=GLOBAL),
        rate(3, "Almaty", 1, source="cy"),
        correct(4, "Almaty", source="ben", role="ask", lesson_id=GLOBAL),
    ):
        state.step(event)
    explained = state.explain(GLOBAL)
    assert explained is not None
    told = [(e.seq, e.source, e.answer, e.value, e.trust, e.alpha) for e in explained.evidence]
    assert told == [
        (1, "ada", "Almaty", 1.0, 1.0, 1.0),
        (3, "cy", "Almaty", 1.0, 1.0, 1 / 11),
        (4, "ben", "Almaty", 1.0, 1.0, 1 / 12),
    ]
    assert explained.evidence[-1].beliefs == explained.lesson.beliefs == {"Almaty": 1.0}
    assert state.explain("les_unknown") is None


def test_an_explanation_of_a_slot_that_askers_made_begins_with_no_belief() -> None:
    state = Fold()
    state.step(correct(1, "Astana", source="ben", role="ask"))
    explained = state.explain(GLOBAL)
    assert explained is not None
    assert [(e.source, e.alpha, e.beliefs) for e in explained.evidence] == [("ben", 1 / 3, {"Astana": 1 / 3})]


def test_a_tenants_and_a_global_lesson_share_one_slot_of_everybodys() -> None:
    """Whoever teaches last is right, whatever scope the one before chose."""
    wide, tenant = correct(1, "Almaty"), replace(correct(2, "Astana"), scope="tenant")
    tenant.body["lesson_id"] = slot_id("default", "tenant", "", QUESTION)
    for events, answer, scope in (
        ([wide, tenant], "Astana", "tenant"),
        ([tenant, replace(wide, seq=3)], "Almaty", "global"),
    ):
        (lesson,) = fold(events).values()
        assert (lesson.answer, lesson.scope) == (answer, scope)
        assert lesson.visible_to(Viewer())
        assert not lesson.visible_to(Viewer(tenant="other"))


def test_an_asker_in_a_session_corrects_for_that_session() -> None:
    said = replace(correct(1, "Astana", source="ben", role="ask"), scope="session", scope_id="s1")
    said.body["lesson_id"] = slot_id("default", "session", "s1", QUESTION)
    own = correct(2, "Almaty", source="ben", role="ask")
    again = replace(said, seq=3, body={**own.body, "answer": "Nur-Sultan"})  # cites the user's lesson, in the session
    lessons = fold([said, own, again])
    by_scope = {lesson.scope: lesson.answer for lesson in lessons.values() if lesson.private}
    assert by_scope == {"session": "Nur-Sultan", "user": "Almaty"}
    assert lessons[said.body["lesson_id"]].visible_to(Viewer(session="s1"))
    assert not lessons[said.body["lesson_id"]].visible_to(Viewer(user="ben"))
    assert not lessons[said.body["lesson_id"]].visible_to(Viewer(tenant="other", session="s1"))


def test_an_expiry_comes_with_the_lesson_or_later_and_goes_with_the_next_answer() -> None:
    taught = correct(1, "Astana", expires="2027-01-31")
    assert fold([taught])[GLOBAL].expires == "2027-01-31T00:00:00.000+00:00"
    assert fold([taught, expire(2, None)])[GLOBAL].expires is None
    later = fold([taught, expire(2, "2028-02-01T01:00:00+01:00")])[GLOBAL]
    assert later.expires == "2028-02-01T00:00:00.000+00:00"
    assert (later.expired("2028-01-31T23:59:59.999+00:00"), later.expired(later.expires)) == (False, True)
    assert fold([taught, correct(2, "Almaty")])[GLOBAL].expires is None
    assert fold([taught, expire(2, None, source="ben", role="ask")])[GLOBAL].expires is not None


def test_evidence_after_a_lesson_has_expired_is_about_another_time() -> None:
    taught = correct(1, "Almaty", expires="2020-01-01")
    late = [correct(seq, "Astana", source=f"user {seq}", role="ask") for seq in (2, 3, 4)]
    lesson = fold([taught, *late])[GLOBAL]
    assert (lesson.answer, lesson.believed, lesson.expires) == ("Astana", True, None)
    in_time = [replace(event, time="2019-06-01T00:00:00.000+00:00") for event in late]
    assert fold([taught, *in_time])[GLOBAL].answer == "Almaty"


@pytest.mark.parametrize("wrong", ["soon", "2027-13-01", ""])
def test_what_is_no_time_is_refused_in_words(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no time: write 2027-01-31"):
        moment(wrong)


def test_a_question_key_keeps_punctuation_inside_words() -> None:
    assert question_key(" What is  C++? ") == question_key("what is c++")
    assert question_key("What is C++?") != question_key("What is C?")
