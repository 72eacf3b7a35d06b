"""Feedback from elsewhere, and to elsewhere: JSONL, JSON, CSV, Parquet, Hugging Face datasets, LangSmith, Langfuse.

An import reads and checks every row before it writes one. A row becomes a lesson line; its digest is its idempotency
key, so that a file sent twice, or half a file sent again, is taken in once. Rows that an export wrote are folded, as
the log itself is: what comes back are the lessons for everybody that they leave, and no rating, no comment, nothing
that was taken back.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.data.lines import LessonLine
from pipeline.feedback.erasure import is_buried
from pipeline.feedback.events import ErasedFeedback, EventLog, body_text
from pipeline.feedback.intake import record_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.records import HELD, Event, check_text
from pipeline.feedback.rows import InvalidFile, Problem, Row, read_rows
from pipeline.memory.belief import Fold
from pipeline.memory.types import Lesson, question_key

__all__ = ["Imported", "InvalidFile", "Problem", "export", "import_lines", "line_id", "read_feedback"]

WRITERS = 16  # they share transactions
GROUP = 256
QUESTION_NAMES = ("question", "input", "query", "prompt", "text")
ANSWER_NAMES = ("answer", "expectedOutput", "expected_output", "reference", "output", "completion", "content", "text")
OWN_FIELDS = {"seq", "kind", "op"}  # of a row that an export wrote
FOR_EVERYBODY = (None, "global", "tenant")


@dataclass(frozen=True)
class Imported:
    """What an import did with the rows of a file."""

    new: int
    known: int  # taken in before
    erased: int  # left out, because it was erased here


def line_id(line: LessonLine) -> str:
    """The same line has the same idempotency key, so that a file sent twice is taught once."""
    return "line_" + sha256(line.model_dump_json(exclude_none=True).encode()).hexdigest()[:40]


def read_feedback(path: Path) -> list[LessonLine]:
    """Every row of a file, or of a Hugging Face dataset's folder, as a lesson line; raises :class:`InvalidFile`."""
    lines: list[LessonLine] = []
    problems: list[Problem] = []
    for number, row in _restored(read_rows(path)):
        found = row if isinstance(row, Problem) else _line(number, row)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            lines.append(found)
    if problems or not lines:
        raise InvalidFile(path, problems or [Problem(0, "", "there is no lesson in it")])
    return lines


def _line(number: int, row: Row) -> LessonLine | Problem:
    try:
        line = LessonLine.model_validate(_lesson(row))
    except ValidationError as error:
        first = error.errors()[0]
        return Problem(number, ".".join(map(str, first["loc"])), f"{first['msg']}, got {first['input']!r:.80}")
    if line.scope not in FOR_EVERYBODY:
        return Problem(number, "scope", f"an import is for everybody: global, tenant or none, not {line.scope!r:.80}")
    return _unwritable(number, line) or line


def _unwritable(number: int, line: LessonLine) -> Problem | None:
    """The field that the log would refuse, where there is one."""

    def check(**only: Any) -> str | None:
        try:
            check_text("it", body_text(line.model_dump(mode="json", **only)))
        except ValueError as error:
            return str(error)
        return None

    if check() is None:
        return None
    names = (*LessonLine.model_fields, *(line.model_extra or {}))
    name, why = next((name, why) for name in names if (why := check(include={name})))
    return Problem(number, name, f"not UTF-8, half of a surrogate pair, or no JSON ({why:.200})")


def _restored(rows: Iterable[tuple[int, Row | Problem]]) -> Iterator[tuple[int, Row | Problem]]:
    """The rows, and in place of those that an export wrote the lessons that everybody believes after them."""
    memory = Fold()
    places: dict[int, int] = {}  # of an event's seq
    for number, row in rows:
        if isinstance(row, Problem) or not row.keys() >= OWN_FIELDS:
            yield number, row
        elif row["kind"] == "lesson":
            try:
                event = _event(row)
                memory.step(event)
            except (KeyError, TypeError, ValueError) as error:
                yield number, Problem(number, "", f"no row of an export ({type(error).__name__}: {error})")
                continue
            places[event.seq] = number
    for slot in memory.slots.values():
        if not slot.lesson.private and slot.lesson.believed:
            yield places[slot.lesson.last_seq], _told(slot.lesson)


def _event(row: Row) -> Event:
    names = ("op", "lesson_id", "question", "answer", "previous", "date", "expires")
    body = {name: row.get(name) for name in names} | {"paraphrases": row.get("paraphrases") or []}
    body |= {"value": float(row["value"])} if row.get("value") is not None else {}
    told = {name: row[name] for name in ("source", "role", "scope", "time")}
    return Event(kind="lesson", body=body, scope_id=_owner(row), seq=int(row["seq"]), **told)


def _owner(row: Row) -> str:
    return str(row["source"]) if row["scope"] == "user" else ""


def _told(lesson: Lesson) -> Row:
    return {
        "question": lesson.question,
        "answer": lesson.answer,
        "paraphrases": list(lesson.paraphrases),
        "date": lesson.date,
        "expires": lesson.expires,
        "scope": None if lesson.scope == "global" else lesson.scope,
    }


def import_lines(
    log: EventLog, lines: Iterable[LessonLine], key: Key, *, progress: Callable[[int], object] = int
) -> Imported:
    """Take lines in as ``key`` would teach them. Interrupted, it may be run again: what is there is known already."""

    def take(line: LessonLine) -> str:
        if is_buried(log, key.tenant, line.question, line.answer):
            return "erased"
        try:
            return "known" if record_lesson(log, line, key=key, feedback_id=line_id(line)).duplicate else "new"
        except ErasedFeedback:
            return "erased"

    counts = {"new": 0, "known": 0, "erased": 0}
    with ThreadPoolExecutor(WRITERS) as pool:
        for group in _groups(lines):
            for outcome in pool.map(take, group):
                counts[outcome] += 1
            progress(sum(counts.values()))
    return Imported(**counts)


def _groups(lines: Iterable[LessonLine]) -> Iterator[list[LessonLine]]:
    """Lines that may be written in any order: of the same question, the one that comes later has to win."""
    group: dict[str, LessonLine] = {}
    for line in lines:
        key = question_key(line.question)
        if key in group or len(group) == GROUP:
            yield [*group.values()]
            group = {}
        group[key] = line
    yield [*group.values()]


def export(log: EventLog, path: Path, tenant: str = "default") -> int:
    """What was said and taught, as JSONL, CSV or Parquet by the file's name; returns the number of rows.

    What curation holds back stays here: an import would teach it.

    Hugging Face's ``load_dataset("parquet", data_files=...)`` reads the Parquet file; an import reads any of them.
    """
    said = (event for event in log.pages(kinds=("feedback", "lesson")) if event.tenant == tenant)
    rows = [_flat(event) for event in said if HELD not in event.body]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema=EXPORTED), path)
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, EXPORTED.names)
            writer.writeheader()
            writer.writerows({**row, "paraphrases": "|".join(row["paraphrases"] or ())} for row in rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        raise ValueError(f"{path}: name it .jsonl, .csv or .parquet")
    return len(rows)


EXPORTED = pa.schema(
    [
        ("seq", pa.int64()),
        *(
            (name, pa.string())
            for name in ("time", "kind", "op", "source", "role", "scope", "feedback_id", "response_id")
        ),
        *((name, pa.string()) for name in ("lesson_id", "question", "answer", "previous", "value")),
        ("model_version", pa.int64()),
        ("paraphrases", pa.list_(pa.string())),
        ("date", pa.string()),
        ("expires", pa.string()),
    ]
)


def _flat(event: Event) -> Row:
    body, columns = event.body, vars(event)
    op = body.get("op") or body.get("kind")
    told = {"op": op, "value": None if body.get("value") is None else str(body["value"])}
    return {name: told.get(name, columns.get(name, body.get(name))) for name in EXPORTED.names}


def _lesson(row: Row) -> Row:
    """A row as a lesson line's fields. Besides lesson lines: chats, and what LangSmith and Langfuse export."""
    row = {name: value for name, value in row.items() if value is not None}
    if "question" in row and "answer" in row:
        return row
    answer = _corrected(row) or _text(row.get("reference_outputs"), ANSWER_NAMES)
    for name in ("answer", "expectedOutput", "expected_output", "outputs", "output"):
        answer = answer or _text(row.get(name), ANSWER_NAMES)
    question = next((t for name in (*QUESTION_NAMES, "inputs") if (t := _text(row.get(name), QUESTION_NAMES))), None)
    messages = _list(row.get("messages"))
    question = question or _said(messages, "user")
    answer = answer or _said(messages, "assistant")
    found = {"question": question, "answer": answer, "date": row.get("date")}
    return {name: value for name, value in found.items() if value is not None}


def _corrected(row: Row) -> str | None:
    """A person's correction: LangSmith's ``feedback[].correction``, Langfuse's score named ``correction``."""
    for said in (*_list(row.get("feedback")), *_list(row.get("scores"))):
        if isinstance(said, dict):
            if said.get("correction"):
                return _text(said["correction"], ANSWER_NAMES)
            if said.get("name") == "correction":
                return _text(said.get("stringValue") or said.get("comment") or said.get("value"), ANSWER_NAMES)
    return _text(row.get("correction"), ANSWER_NAMES)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any, names: Iterable[str]) -> str | None:
    """Text, or the text inside an object or a chat."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, list):
        return _said(value, "user") or _said(value, "assistant")
    if isinstance(value, dict):
        if isinstance(value.get("messages"), list):
            return _said(value["messages"], "user" if "question" in names else "assistant")
        return next((text for name in names if (text := _text(value.get(name), names))), None)
    return None


def _said(messages: Iterable[Any], role: str) -> str | None:
    """The last text that ``role`` said."""
    texts = [m["content"] for m in messages if isinstance(m, dict) and m.get("role", m.get("type")) in _ROLES[role]]
    return next((text.strip() for text in reversed(texts) if isinstance(text, str) and text.strip()), None)


_ROLES = {"user": ("user", "human"), "assistant": ("assistant", "ai")}
