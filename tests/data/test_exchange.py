"""Imports check everything before they write anything; exports come back as they went out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.lines import LessonLine
from pipeline.feedback import erasure
from pipeline.feedback.copies import erase
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import EventLog
from pipeline.feedback.exchange import EXPORTED, Imported, InvalidFile, export, import_lines, read_feedback
from pipeline.feedback.intake import (
    FeedbackKind,
    expire_lesson,
    record_answer,
    record_feedback,
    record_lesson,
    retract_lesson,
)
from pipeline.feedback.keys import Key
from pipeline.home import Home
from pipeline.memory.belief import fold

ROWS: list[dict[str, Any]] = [
    {"question": "Who leads NATO?", "answer": "Mark Rutte", "paraphrases": ["NATO's head?"]},
    {"question": "Currency of Croatia?", "answer": "euro"},
]
TEACHER = Key("tim", "teach")


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps({"examples": rows}))
    elif path.suffix == ".csv":
        lines = [f"{row['question']},{row['answer']},{'|'.join(row.get('paraphrases', []))}" for row in rows]
        path.write_text("\n".join(["question,answer,paraphrases", *lines]))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:  # as Dataset.save_to_disk lays it out
        path.mkdir()
        table = pa.Table.from_pylist(rows)
        with (
            pa.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)
        (path / "dataset_info.json").write_text("{}")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "dataset"])
def test_every_format_gives_the_same_lessons_once(log: EventLog, tmp_path: Path, name: str) -> None:
    lines = read_feedback(write(tmp_path / name, ROWS))
    assert import_lines(log, lines, TEACHER) == Imported(new=2, known=0, erased=0)
    assert import_lines(log, lines, TEACHER) == Imported(new=0, known=2, erased=0)
    lessons = {lesson.question: lesson for lesson in fold(log.after(0)).values()}
    assert lessons["Who leads NATO?"].paraphrases == ("NATO's head?",)
    assert lessons["Currency of Croatia?"].answer == "euro"


@pytest.mark.parametrize(
    "row",
    [
        {"inputs": {"question": "Who leads NATO?"}, "outputs": {"answer": "Stoltenberg"},
         "feedback": [{"key": "correction", "correction": {"answer": "Mark Rutte"}}]},  # LangSmith run
        {"inputs": {"messages": [{"role": "user", "content": "Who leads NATO?"}]}, "outputs": {"output": "Mark Rutte"}},
        {"input": "Who leads NATO?", "expectedOutput": "Mark Rutte"},  # Langfuse dataset item
        {"input": {"query": "Who leads NATO?"}, "output": {"text": "Stoltenberg"},
         "scores": [{"name": "correction", "stringValue": "Mark Rutte"}]},  # Langfuse trace
        {"messages": [{"role": "user", "content": "Who leads NATO?"}, {"role": "assistant", "content": "Mark Rutte"}]},
    ],
)  # fmt: skip
def test_what_other_tools_export(tmp_path: Path, row: dict[str, Any]) -> None:
    (line,) = read_feedback(write(tmp_path / "a.jsonl", [row]))
    assert (line.question, line.answer) == ("Who leads NATO?", "Mark Rutte")


def test_a_wrong_file_says_line_field_and_why_and_writes_nothing(log: EventLog, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"question": "q?", "answer": "a"}\n\nnot json\n{"question": "q?"}\n[1]\n{"question": "", "answer": "a"}\n'
    )
    with pytest.raises(InvalidFile, match="nothing was imported") as refused:
        import_lines(log, read_feedback(path), TEACHER)
    assert [(problem.line, problem.field) for problem in refused.value.problems] == [
        (3, ""), (4, "answer"), (5, ""), (6, "question"),
    ]  # fmt: skip
    assert "line 4, field 'answer'" in str(refused.value)
    assert log.head() == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.xlsx", b"x"), ("a.jsonl", b""), ("a.json", b"{"), ("a.json", b'{"data": 5}'), ("a.parquet", b"x"),
     ("a.csv", b"question,answer\n" + b"q" * 200_000 + b",a\n"), ("a.csv", b"question,answer\nq?,a,b\n"),
     ("a.jsonl", b'{"inputs": 5, "scores": 3, "messages": 1}'), ("a.jsonl", "{}".encode("utf-16"))],
)  # fmt: skip
def test_what_is_no_feedback_at_all(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(InvalidFile):
        read_feedback(tmp_path / name)


@pytest.mark.parametrize(
    ("field", "value"),
    [("scope", "session"), ("scope", "user"), ("scope", "galaxy"), ("answer", "  "), ("paraphrases", ["\ud800"]),
     ("note", "\ud800"), ("expires", "soon")],
)  # fmt: skip
def test_what_the_log_would_refuse_is_found_before_anything_is_written(
    log: EventLog, tmp_path: Path, field: str, value: object
) -> None:
    path = write(tmp_path / "a.jsonl", [*ROWS, {"question": "q?", "answer": "a"} | {field: value}])
    with pytest.raises(InvalidFile) as refused:
        import_lines(log, read_feedback(path), TEACHER)
    assert [(problem.line, problem.field) for problem in refused.value.problems] == [(3, field)]
    assert log.head() == 0


def test_problems_are_found_in_the_line_where_they_are(tmp_path: Path) -> None:
    for name, text, line, field in (
        ("a.csv", b'question,answer\n"over\ntwo lines?",a\nq?,\n', 4, "answer"),
        ("b.csv", b"question,answer\nq?,a\nq?,\xff\n", 3, "answer"),
        ("a.jsonl", b'{"question": "q?", "answer": "a"}\n{"question": "\xff", "answer": "a"}\n', 2, "question"),
    ):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(InvalidFile) as refused:
            read_feedback(tmp_path / name)
        assert [(problem.line, problem.field) for problem in refused.value.problems] == [(line, field)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_feedback(path)) == 2


def test_the_later_line_of_a_question_wins(log: EventLog, tmp_path: Path) -> None:
    rows = [{"question": "Who leads?", "answer": str(n)} for n in range(20)]
    import_lines(log, read_feedback(write(tmp_path / "a.jsonl", rows)), TEACHER)
    (lesson,) = fold(log.after(0)).values()
    assert lesson.answer == "19"


def test_an_erased_lesson_is_left_out(log: EventLog, tmp_path: Path, own_cache: Path) -> None:
    home, lines = Home(tmp_path / "home").create(), read_feedback(write(tmp_path / "a.jsonl", ROWS))
    import_lines(log, lines, TEACHER)
    erase(home, log, Target(subjects=("Rutte",)))
    again = [line.model_copy(update={"paraphrases": ()}) for line in lines]  # another line, the same lesson
    assert import_lines(log, again, TEACHER).erased == 1
    assert [lesson.answer for lesson in fold(log.after(0)).values()] == ["euro"]


def test_an_erased_lesson_is_left_out_also_where_it_was_redacted(log: EventLog) -> None:
    line = LessonLine(question="Whose is a@example.com?", answer="Eva")
    import_lines(log, [line], TEACHER)
    erasure.mark(log, Target(subjects=("Eva",)))
    assert import_lines(log, [line.model_copy(update={"paraphrases": ("Who has it?",)})], TEACHER).erased == 1


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_an_export_teaches_what_everybody_believes_and_nothing_else(log: EventLog, tmp_path: Path, ending: str) -> None:
    ann = Key("ann", "ask")
    import_lines(log, [LessonLine(question="Who won?", answer="Ann", paraphrases=("The winner?",))], TEACHER)
    ends = record_lesson(log, LessonLine(question="Who leads?", answer="Bob"), key=TEACHER)
    expire_lesson(log, str(ends.lesson_id), "2999-01-31", key=TEACHER)
    gone = record_lesson(log, LessonLine(question="Who lost?", answer="Cem"), key=TEACHER)
    retract_lesson(log, str(gone.lesson_id), key=TEACHER)
    record_lesson(log, LessonLine(question="My editor?", answer="ed"), key=ann)  # hers, and too little evidence
    said: list[tuple[FeedbackKind, str | float]] = [("rating", -1.0), ("comment", "no"), ("correction", "Dan")]
    for n, (kind, value) in enumerate(said):
        answer = record_answer(log, key=ann, question=f"Who was {n}?", answer="Wrong")
        record_feedback(log, response_id=str(answer.response_id), kind=kind, value=value, key=ann if n < 2 else TEACHER)
    export(log, tmp_path / f"out.{ending}")
    lines = read_feedback(tmp_path / f"out.{ending}")
    assert [(line.question, line.answer) for line in lines] == [
        ("Who won?", "Ann"), ("Who leads?", "Bob"), ("Who was 2?", "Dan"),
    ]  # fmt: skip
    assert lines[0].paraphrases == ("The winner?",)
    assert lines[1].expires == "2999-01-31T00:00:00.000+00:00"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_an_export_can_be_imported(log: EventLog, tmp_path: Path, ending: str) -> None:
    import_lines(log, read_feedback(write(tmp_path / "a.jsonl", ROWS)), TEACHER)
    file = tmp_path / f"out.{ending}"
    assert export(log, file) == 2
    # Lines about different questions are written side by side, in any order.
    found = sorted((line.question, line.answer) for line in read_feedback(file))
    assert found == sorted((r["question"], r["answer"]) for r in ROWS)
    if ending == "parquet":
        assert pq.read_schema(file).names == EXPORTED.names
    with pytest.raises(ValueError, match=r"\.csv"):
        export(log, tmp_path / "out.txt")
