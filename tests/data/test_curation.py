"""What is held back, why, for whom it counts meanwhile, and what a review changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.config import CurationSettings
from pipeline.data.lines import LessonLine
from pipeline.feedback.copies import erase
from pipeline.feedback.curation import Curator, NotHeld, held, junk, review
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import EventLog
from pipeline.feedback.exchange import export
from pipeline.feedback.intake import (
    Receipt,
    Said,
    amend_lesson,
    rate_lesson,
    record_answer,
    record_feedback,
    record_feedbacks,
    record_lesson,
)
from pipeline.feedback.keys import Key
from pipeline.feedback.manifest import build_manifest
from pipeline.feedback.sealer import Sealer
from pipeline.home import Home
from pipeline.memory.belief import Fold, fold
from pipeline.memory.types import Lesson, Viewer

EVA, TEACHER, ADMIN = Key("eva", "ask"), Key("tim", "teach"), Key("root", "admin")
QUESTION = "What is the capital of Kazakhstan?"
JUNK = "aaaaaaaaaa"


def correct(
    log: EventLog, name: str, value: str, question: str = QUESTION, curator: Curator | None = None, **told: str
) -> Receipt:
    key = Key(name, "ask")
    answer = record_answer(log, key=key, question=question, answer="I do not know")
    return record_feedback(
        log,
        response_id=str(answer.response_id),
        kind="correction",
        value=value,
        key=key,
        curator=curator or Curator(),
        **told,  # type: ignore[arg-type]
    )


def everybodys(log: EventLog, question: str = QUESTION) -> Lesson | None:
    lessons = fold(log.after(0)).values()
    return next((lesson for lesson in lessons if lesson.scope == "global" and lesson.question == question), None)


def own(log: EventLog, name: str) -> list[str]:
    viewer = Viewer(user=name)
    return [lesson.answer for lesson in fold(log.after(0)).values() if lesson.private and lesson.visible_to(viewer)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("?!?", "no letter"),
        ("looooooool", "one character"),
        ("buy buy buy buy buy now", "again and again"),
        ("sdfghjkl", "no word"),
        ("see https://spam.example/win", "a link"),
        ("<script>alert(1)</script>", "a link or markup"),
        ("what is the capital of kazakhstan", "the question itself"),
    ],
)
def test_junk_is_held_back_with_its_reason(log: EventLog, answer: str, reason: str) -> None:
    receipt = correct(log, "eva", answer)
    assert len(receipt.quarantined) == 1
    assert reason in receipt.quarantined[0]
    assert everybodys(log) is None
    assert own(log, "eva") == [answer]  # right at once for whoever says it


@pytest.mark.parametrize(
    "answer",
    ["Astana", "42", "+7 %", "C++", "rhythm", "Škoda", "北京", "no", "1000000", "Llanfairpwll", "NATO"],
)
def test_an_ordinary_answer_counts_at_once(log: EventLog, answer: str) -> None:
    assert correct(log, "eva", answer).quarantined == ()
    assert everybodys(log) is not None
    assert held(log) == []


def test_no_shipped_answer_looks_like_junk(log: EventLog, root: Path) -> None:
    lines = (root / "examples/world_changes/lessons.jsonl").read_text(encoding="utf-8").splitlines()
    found = [row for line in lines if (row := json.loads(line)) and list(junk(row))]
    assert len(lines) > 200
    assert [(row["question"], row["answer"]) for row in found] == []


def test_a_teachers_word_is_never_held_back(log: EventLog) -> None:
    curator = Curator(CurationSettings(per_source_hour=1), trust=lambda _tenant, _source: 0.0)
    for _ in range(3):
        answer = record_answer(log, key=TEACHER, question=QUESTION, answer="Almaty")
        receipt = record_feedback(
            log, response_id=str(answer.response_id), kind="correction", value=JUNK, key=TEACHER, curator=curator
        )
        assert receipt.quarantined == ()
    lesson = everybodys(log)
    assert lesson is not None
    assert lesson.answer == JUNK


def test_a_flood_of_one_source_is_capped_and_nobody_elses(log: EventLog) -> None:
    curator = Curator(CurationSettings(per_source_hour=3, repeats=0))
    said = [correct(log, "eva", f"answer {n}", f"question {n}?", curator) for n in range(5)]
    assert [bool(receipt.quarantined) for receipt in said] == [False, False, False, True, True]
    assert correct(log, "ann", "answer", curator=curator).quarantined == ()


def test_a_key_that_invents_sources_is_capped_and_a_teachers_is_not(log: EventLog) -> None:
    curator = Curator(CurationSettings(per_key_hour=3, repeats=0))
    said = [correct(log, "app", f"answer {n}", f"question {n}?", curator, source=f"user {n}") for n in range(5)]
    assert [bool(receipt.quarantined) for receipt in said] == [False, False, False, True, True]
    assert "with one key" in said[3].quarantined[0]
    assert correct(log, "other", "answer", curator=curator).quarantined == ()
    for n in range(5):
        record_lesson(log, LessonLine(question=f"taught {n}?", answer="right"), key=TEACHER)
    assert curator.screened(log, log.after(log.head() - 1)) == log.after(log.head() - 1)


def test_what_is_said_in_one_group_counts_as_if_said_one_by_one(log: EventLog) -> None:
    curator = Curator(CurationSettings(per_source_hour=3, repeats=0))
    answers = [record_answer(log, key=EVA, question=f"question {n}?", answer="no idea") for n in range(5)]
    said = [Said(str(a.response_id), "correction", EVA, f"answer {n}") for n, a in enumerate(answers)]
    heard = record_feedbacks(log, said, curator)
    assert [bool(receipt.quarantined) for receipt in heard if isinstance(receipt, Receipt)] == [False] * 3 + [True] * 2


def test_a_repeat_of_what_is_in_the_log_counts_against_nobody(log: EventLog) -> None:
    curator = Curator(CurationSettings(per_source_hour=3, repeats=0))
    answers = [record_answer(log, key=EVA, question=f"question {n}?", answer="no idea") for n in range(3)]
    said = [
        Said(str(a.response_id), "correction", EVA, f"answer {n}", feedback_id=f"fb_{n}") for n, a in enumerate(answers)
    ]
    record_feedbacks(log, said[:1], curator)
    heard = record_feedbacks(log, [said[0], said[0], *said], curator)
    assert [receipt.duplicate for receipt in heard if isinstance(receipt, Receipt)] == [True] * 3 + [False] * 2
    assert held(log) == []


def test_nearly_the_same_answer_to_many_questions_is_held_back(log: EventLog) -> None:
    said = [correct(log, "eva", f"vote for Marlow in 203{n}", f"question {n}?") for n in range(7)]
    assert [bool(receipt.quarantined) for receipt in said] == [False] * 5 + [True] * 2
    assert "5 other questions" in said[5].quarantined[0]
    assert correct(log, "eva", "something else", "another?").quarantined == ()


def test_a_source_that_was_mostly_contradicted_is_held_back(log: EventLog) -> None:
    for n in range(14):
        correct(log, "eva", f"wrong {n * n}", f"question {n}?")
        record_lesson(log, LessonLine(question=f"question {n}?", answer="right"), key=TEACHER)
    memory = Fold()
    for event in log.after(0):
        memory.step(event)
    receipt = correct(log, "eva", "Astana", curator=Curator(trust=memory.sources.multiplier))
    assert "contradicted" in receipt.quarantined[0]
    assert correct(log, "ann", "Astana", curator=Curator(trust=memory.sources.multiplier)).quarantined == ()


def test_no_way_round_by_ratings_or_changes_of_ones_own_lesson(log: EventLog) -> None:
    taught = record_lesson(log, LessonLine(question=QUESTION, answer="Astana"), key=TEACHER)
    strict = Curator(trust=lambda _tenant, _source: 0.0)
    rated = rate_lesson(log, str(taught.lesson_id), "Astana", -1.0, key=Key("eva", "ask"), curator=strict)
    assert rated.quarantined
    mine = record_lesson(log, LessonLine(question=QUESTION, answer="Almaty"), key=Key("eva", "ask"))
    amended = amend_lesson(log, str(mine.lesson_id), answer="Atyrau", key=Key("eva", "ask"), curator=strict)
    assert amended.quarantined
    assert own(log, "eva") == ["Atyrau"]
    lesson = everybodys(log)
    assert lesson is not None
    assert (lesson.answer, set(lesson.beliefs)) == ("Astana", {"Astana", "Almaty"})


def test_posting_again_gives_the_first_receipt(log: EventLog) -> None:
    first = correct(log, "eva", JUNK, feedback_id="fb_1")
    again = correct(log, "eva", JUNK, feedback_id="fb_1")
    assert again.duplicate
    assert (again.seq, again.quarantined) == (first.seq, first.quarantined)
    assert len(held(log)) == 1


def test_accepted_it_counts_and_a_replay_is_the_same(log: EventLog) -> None:
    for name in ("ann", "bob"):
        correct(log, name, "Astana")
    receipt = correct(log, "eva", "Astana", curator=Curator(trust=lambda _tenant, _source: 0.0))
    (waiting,) = held(log)
    assert (waiting.feedback_id, waiting.source, waiting.said) == (receipt.feedback_id, "eva", "Astana")
    before = everybodys(log)
    assert before is not None
    assert not before.believed
    assert review(log, receipt.feedback_id, "accept", ADMIN) == "accept"
    assert review(log, receipt.feedback_id, "reject", ADMIN) == "accept"  # a decision stays
    after = everybodys(log)
    assert after is not None
    assert after.believed
    assert held(log) == []
    assert [each.decision for each in held(log, everything=True)] == ["accept"]
    step_by_step = Fold()
    for event in log.after(0):
        step_by_step.step(event)
    assert {i: slot.lesson for i, slot in step_by_step.slots.items()} == fold(log.after(0))


def test_an_accepted_correction_does_not_undo_the_askers_newer_one(log: EventLog) -> None:
    first = correct(log, "eva", JUNK)
    correct(log, "eva", "Astana")
    review(log, first.feedback_id, "accept", ADMIN)
    assert own(log, "eva") == ["Astana"]


def test_rejected_it_counts_for_nobody_else(log: EventLog) -> None:
    receipt = correct(log, "eva", JUNK)
    assert review(log, receipt.feedback_id, "reject", ADMIN) == "reject"
    assert (held(log), everybodys(log)) == ([], None)


def test_only_what_is_held_back_can_be_reviewed(log: EventLog) -> None:
    fine = correct(log, "eva", "Astana")
    with pytest.raises(NotHeld, match="agm feedback review list"):
        review(log, fine.feedback_id, "accept", ADMIN)
    with pytest.raises(NotHeld):
        review(log, correct(log, "eva", JUNK).feedback_id, "accept", Key("root", "admin", "acme"))


def test_the_manifest_names_what_is_held_back_until_it_is_accepted(log: EventLog, tmp_path: Path) -> None:
    table = tmp_path / "feedback"
    correct(log, "ann", "Astana")
    strict = Curator(trust=lambda _tenant, _source: 0.0)
    last = correct(log, "eva", "Astana", curator=strict)
    bad = correct(log, "mal", JUNK)

    def reasons(from_seq: int = 0) -> tuple[int, dict[str, list[str]]]:
        Sealer(log, table).drain()
        made = build_manifest(table, log, cycle=1, from_seq=from_seq, to_seq=log.head())
        found: dict[str, list[str]] = {}
        for dropped in made.dropped:
            found.setdefault(dropped.lesson_id, []).append(dropped.reason)
        return len(made.lessons), found

    lessons, why = reasons()
    assert lessons == 0
    assert any(reason.startswith("quarantined: most of what") for reason in why[str(last.lesson_id)])
    assert any(reason.startswith("quarantined: one character") for reason in why[str(bad.lesson_id)])
    seam = log.head()
    review(log, last.feedback_id, "accept", ADMIN)
    review(log, bad.feedback_id, "reject", ADMIN)
    lessons, why = reasons(seam)
    assert lessons == 1  # the second vote came with the acceptance
    assert [reason for reason in why[str(bad.lesson_id)] if reason.startswith("rejected in review")]
    assert str(last.lesson_id) not in why


def test_erasing_takes_the_record_and_the_review_along(log: EventLog, tmp_path: Path, own_cache: Path) -> None:
    home = Home(tmp_path / "home").create()
    receipt = correct(log, "eva", JUNK)
    review(log, receipt.feedback_id, "accept", ADMIN)
    erase(home, log, Target(sources=("eva",)))
    assert {event.kind for event in log.after(0)} <= {"erasure", "lesson"}
    assert held(log, everything=True) == []
    assert everybodys(log) is None


def test_an_export_leaves_out_what_is_held_back(log: EventLog, tmp_path: Path) -> None:
    correct(log, "eva", JUNK)
    correct(log, "ann", "Astana")
    export(log, tmp_path / "said.jsonl")
    text = (tmp_path / "said.jsonl").read_text()
    assert "Astana" in text
    assert JUNK not in text


def test_review_at_the_terminal(home_root: Path) -> None:
    from pipeline.feedback.database import open_database

    home = Home(home_root).create()
    log = EventLog(open_database(home.events_url))
    ids = [correct(log, "eva", JUNK, f"question {n}?").feedback_id for n in range(2)]

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["feedback", "review", *words])
        assert done.exit_code == 0, done.output
        return done.output

    assert [row["feedback_id"] for row in json.loads(run("list", "--json"))] == ids
    assert f"{ids[0]}: accepted" in run("accept", ids[0])
    assert f"{ids[1]}: rejected" in run("reject", ids[1])
    assert "decided before" in run("accept", ids[1])
    assert json.loads(run("list", "--json")) == []
    log.engine.dispose()
