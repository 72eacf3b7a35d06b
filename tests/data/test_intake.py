"""What a client says, and what the log then holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.data.lines import LessonLine
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import (
    NotAllowed,
    Receipt,
    Said,
    UnknownLesson,
    UnknownResponse,
    amend_lesson,
    expire_lesson,
    record_answer,
    record_feedback,
    record_feedbacks,
    record_lesson,
    retract_lesson,
)
from pipeline.feedback.keys import Key
from pipeline.feedback.records import Event
from pipeline.memory.belief import fold

ASKER, TEACHER = Key("eva", "ask"), Key("tim", "teach")
QUESTION = "What is the currency of Croatia?"


def answered(log: EventLog, key: Key = ASKER, **changes: object) -> str:
    said = {"question": QUESTION, "answer": "kuna", "model_version": 3, **changes}
    return str(record_answer(log, key=key, **said).response_id)


def last(log: EventLog) -> Event:
    return log.after(log.head() - 1)[0]


def test_many_are_heard_at_once_and_each_is_refused_alone(log: EventLog) -> None:
    first, second = answered(log), answered(log, question="Who won?")
    said = [
        Said(first, "rating", ASKER, 1.0, feedback_id="a"),
        Said("resp_unknown", "rating", ASKER, 1.0),
        Said(first, "rating", ASKER, 7.0),
        Said(first, "correction", Key("eve", "ask", tenant="elsewhere"), "dinar"),
        Said(second, "correction", TEACHER, "Ann", feedback_id="b"),
        Said(second, "correction", TEACHER, "Bob", feedback_id="b"),
        Said(second, "comment", ASKER, "a \ud800 b"),
        Said(first, "comment", ASKER, "why?"),
    ]
    before = log.head()
    heard = record_feedbacks(log, said)
    kinds = [type(one) for one in heard]
    assert kinds == [Receipt, UnknownResponse, ValueError, UnknownResponse, Receipt, Receipt, ValueError, Receipt]
    rated, taught, again = (one for one in (heard[0], heard[4], heard[5]) if isinstance(one, Receipt))
    assert (rated.duplicate, taught.duplicate, again.duplicate) == (False, False, True)
    assert again.seq == taught.seq
    assert [event.kind for event in log.after(before)] == ["feedback", "feedback", "lesson", "feedback"]
    assert [lesson.answer for lesson in fold(log.after(0)).values()] == ["Ann"]


def test_a_correction_is_feedback_and_lesson_together(log: EventLog) -> None:
    response = answered(log)
    receipt = record_feedback(log, response_id=response, kind="correction", value=" euro ", tags=["fact"], key=TEACHER)
    feedback, lesson = log.by_feedback("default", receipt.feedback_id)
    assert (receipt.seq, receipt.lesson_seq, receipt.duplicate) == (feedback.seq, lesson.seq, False) == (2, 3, False)
    assert feedback.body == {
        "kind": "correction",
        "value": "euro",
        "tags": ["fact"],
        "model_version": 3,
        "question": QUESTION,
        "answer": "kuna",
        "lessons": [],
    }
    assert lesson.body["op"] == "correct"
    assert lesson.body["lesson_id"] == receipt.lesson_id
    assert (lesson.body["question"], lesson.body["answer"], lesson.body["previous"]) == (QUESTION, "euro", "kuna")
    assert {lesson.response_id, feedback.response_id} == {response}


def test_a_teacher_speaks_for_everybody_and_an_asker_for_themselves(log: EventLog) -> None:
    taught = record_feedback(log, response_id=answered(log), kind="correction", value="euro", key=TEACHER)
    event = last(log)
    assert (event.scope, event.scope_id, event.role, event.source) == ("global", "", "teach", "tim")
    asked = record_feedback(log, response_id=answered(log), kind="correction", value="euro", key=ASKER, source="ann")
    event = last(log)
    assert (event.scope, event.scope_id, event.role, event.source) == ("user", "ann", "ask", "ann")
    assert taught.lesson_id != asked.lesson_id


def test_the_same_question_in_the_same_scope_is_the_same_lesson(log: EventLog) -> None:
    written = (QUESTION, "what is the  currency of croatia")
    first, second = (record_lesson(log, LessonLine(question=q, answer="euro"), key=TEACHER) for q in written)
    elsewhere = record_lesson(log, LessonLine(question=QUESTION, answer="euro"), key=Key("tim", "teach", "acme"))
    assert first.lesson_id == second.lesson_id != elsewhere.lesson_id


@pytest.mark.parametrize(
    ("question", "strategy", "weight", "same"),
    [
        ("What do they pay with in Zagreb?", "copy", 0.95, True),
        ("Croatia pays in which currency?", "copy", 0.9, True),
        ("What do they pay with in Zagreb?", "copy", 0.9, False),  # the lesson's rarest word is missing
        ("Croatia pays in which currency?", "context", 0.9, False),
        ("Croatia pays in which currency?", "copy", 0.6, False),
    ],
)
def test_correcting_an_answer_that_came_from_a_lesson_corrects_that_lesson(
    log: EventLog, question: str, strategy: str, weight: float, same: bool
) -> None:
    taught = record_lesson(log, LessonLine(question=QUESTION, answer="kuna"), key=TEACHER)
    cited = {taught.lesson_id: weight, "les_other": 0.04}
    response = answered(log, question=question, strategy=strategy, lessons=cited)
    corrected = record_feedback(log, response_id=response, kind="correction", value="euro", key=TEACHER)
    assert (corrected.lesson_id == taught.lesson_id) is same
    slots = fold(log.after(0))
    assert [slots[str(taught.lesson_id)].answer, len(slots)] == (["euro", 1] if same else ["kuna", 2])


@pytest.mark.parametrize(
    ("question", "strategy"),
    [
        ("Is the currency of Croatia the euro?", "context"),
        ("The kuna is the currency of what?", "context"),
        ("What is a hundredth of the currency of Croatia called?", "infer"),  # in two steps
    ],
)
def test_correcting_an_answer_to_a_question_turned_round_leaves_the_lesson_alone(
    log: EventLog, question: str, strategy: str
) -> None:
    taught = record_lesson(log, LessonLine(question=QUESTION, answer="kuna"), key=TEACHER)
    response = answered(log, question=question, strategy=strategy, lessons={taught.lesson_id: 0.97})
    corrected = record_feedback(log, response_id=response, kind="correction", value="Yes", key=TEACHER)
    slots = fold(log.after(0))
    assert corrected.lesson_id != taught.lesson_id
    assert (slots[str(taught.lesson_id)].answer, slots[str(corrected.lesson_id)].answer) == ("kuna", "Yes")


def test_a_rating_speaks_about_the_cited_lesson_only(log: EventLog) -> None:
    uncited = record_feedback(log, response_id=answered(log), kind="rating", value=-1, key=ASKER)
    assert (uncited.lesson_id, uncited.lesson_seq) == (None, None)
    taught = record_lesson(log, LessonLine(question=QUESTION, answer="kuna"), key=TEACHER)
    response = answered(log, lessons={taught.lesson_id: 0.8})
    rated = record_feedback(log, response_id=response, kind="rating", value=-1, key=ASKER)
    assert rated.lesson_id == taught.lesson_id
    assert (last(log).body["op"], last(log).body["value"], last(log).body["answer"]) == ("rate", -1.0, "kuna")


def test_a_comment_teaches_nothing(log: EventLog) -> None:
    receipt = record_feedback(log, response_id=answered(log), kind="comment", value="too short", key=ASKER)
    assert (receipt.seq, receipt.lesson_seq, log.head()) == (2, None, 2)


def test_posting_again_gives_the_first_receipt(log: EventLog) -> None:
    response = answered(log)

    def post(value: str) -> Receipt:
        return record_feedback(log, response_id=response, kind="correction", value=value, feedback_id="f1", key=TEACHER)

    with ThreadPoolExecutor(6) as pool:
        receipts = list(pool.map(post, ["euro", "kuna", "lira", "euro", "yen", "won"]))
    assert len({(receipt.seq, receipt.lesson_seq, receipt.lesson_id) for receipt in receipts}) == 1
    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 5
    assert log.head() == 3


def test_another_tenants_answer_is_unknown(log: EventLog) -> None:
    response = answered(log)
    for key, name in ((Key("x", "admin", "acme"), response), (TEACHER, "resp_none")):
        with pytest.raises(UnknownResponse):
            record_feedback(log, response_id=name, kind="comment", value="hm", key=key)
    assert log.head() == 1


@pytest.mark.parametrize(
    ("kind", "value"),
    [("rating", 2), ("rating", "up"), ("rating", True), ("rating", float("nan")), ("correction", " "),
     ("correction", None), ("comment", 1), ("correction", "x" * 4001), ("praise", "x")],
)  # fmt: skip
def test_a_value_that_does_not_fit_its_kind_is_refused(log: EventLog, kind: str, value: object) -> None:
    response = answered(log)
    with pytest.raises(ValueError, match=r"value|kind"):
        record_feedback(log, response_id=response, kind=kind, value=value, key=ASKER)  # type: ignore[arg-type]
    assert log.head() == 1


def test_a_taught_line_keeps_its_unknown_fields(log: EventLog) -> None:
    line = LessonLine(question=QUESTION, answer="euro", paraphrases=("p?",), date="2023-01-01", source="ECB", ticket=7)
    record_lesson(log, line, key=TEACHER)
    body = last(log).body
    assert (body["paraphrases"], body["date"]) == (["p?"], "2023-01-01")
    assert body["line"] == {"source": "ECB", "ticket": 7}
    assert last(log).source == "tim"  # who said it here, not where it was published


def test_scope_follows_the_role(log: EventLog) -> None:
    line = LessonLine(question=QUESTION, answer="euro", scope="global")
    with pytest.raises(NotAllowed, match="ask"):
        record_lesson(log, line, key=ASKER)
    with pytest.raises(ValueError, match="galaxy"):
        record_lesson(log, line.model_copy(update={"scope": "galaxy"}), key=TEACHER)
    record_lesson(log, line.model_copy(update={"scope": "user"}), key=TEACHER)
    assert (last(log).scope, last(log).scope_id) == ("user", "tim")


def test_retracting(log: EventLog) -> None:
    taught = record_lesson(log, LessonLine(question=QUESTION, answer="euro"), key=TEACHER)
    own = record_lesson(log, LessonLine(question=QUESTION, answer="lira"), key=ASKER)
    with pytest.raises(NotAllowed):
        retract_lesson(log, str(taught.lesson_id), key=ASKER)
    with pytest.raises(NotAllowed):
        retract_lesson(log, str(own.lesson_id), key=Key("mallory", "ask"))
    with pytest.raises(UnknownLesson):
        retract_lesson(log, str(taught.lesson_id), key=Key("x", "admin", "acme"))
    for lesson_id, key in ((taught.lesson_id, TEACHER), (own.lesson_id, ASKER)):
        retract_lesson(log, str(lesson_id), key=key)
        assert lesson_id not in fold(log.after(0))


@pytest.mark.parametrize(("ends", "stays"), [("2999-01-31", "2999-01-31T00:00:00.000+00:00"), ("2001-01-31", None)])
def test_an_end_that_is_to_come_outlasts_a_change(log: EventLog, ends: str, stays: str | None) -> None:
    taught = record_lesson(log, LessonLine(question=QUESTION, answer="kuna", expires="2998-12-31"), key=TEACHER)
    expire_lesson(log, str(taught.lesson_id), ends, key=TEACHER)
    amend_lesson(log, str(taught.lesson_id), answer="euro", key=TEACHER)
    lesson = fold(log.after(0))[str(taught.lesson_id)]
    assert (lesson.answer, lesson.expires) == ("euro", stays)
