"""Feedback from elsewhere, and to elsewhere: JSONL, JSON, CSV, Parquet, Hugging Face datasets, LangSmith, Langfuse.

An import reads and checks every row before it writes one. A row becomes a lesson line; its digest is its idempotency
key, so that a file sent twice, or half a file sent again, is taken in once.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.data.lines import LessonLine
from pipeline.feedback.erasure import is_buried
from pipeline.feedback.events import ErasedFeedback, EventLog
from pipeline.feedback.intake import record_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.records import HELD, Event
from pipeline.memory.types import question_key

SHOWN_PROBLEMS = 20
WRITERS = 16  # they share transactions
GROUP = 256
MAX_FILE_BYTES = 2 << 30
QUESTION_NAMES = ("question", "input", "query", "prompt", "text")
ANSWER_NAMES = ("answer", "expectedOutput", "expected_output", "reference", "output", "completion", "content", "text")

Row = dict[str, Any]


class Problem(NamedTuple):
    """Why a row cannot be taken in."""

    line: int
    field: str
    why: str

    def __str__(self) -> str:
        return f"line {self.line}, field {self.field!r}: {self.why}"


class InvalidFile(ValueError):  # noqa: N818 - reads as what happened
    """Some rows of a file are not feedback; nothing of it was written."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        shown = [f"{path}, {problem}" for problem in problems[:SHOWN_PROBLEMS]]
        more = len(problems) - len(shown)
        super().__init__("\n".join([*shown, *([f"and {more} more"] if more else []), "nothing was imported"]))
        self.problems = problems


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
    lines, problems = [], []
    for number, row in _rows(path):
        if isinstance(row, Problem):
            problems.append(row)
            continue
        try:
            lines.append(LessonLine.model_validate(_lesson(row)))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            problems.append(Problem(number, field, f"{first['msg']}, got {first['input']!r:.80}"))
    if problems or not lines:
        raise InvalidFile(path, problems or [Problem(0, "", "there is no row in it")])
    return lines


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
            writer.writerows(rows)
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
    ]
)


def _flat(event: Event) -> Row:
    body, columns = event.body, vars(event)
    op = body.get("op") or body.get("kind")
    told = {"op": op, "value": None if body.get("value") is None else str(body["value"])}
    return {name: told.get(name, columns.get(name, body.get(name))) for name in EXPORTED.names}


def _rows(path: Path) -> Iterator[tuple[int, Row | Problem]]:
    """Rows with the number of their line, or of the row where a format has no lines."""
    readers: dict[str, Callable[[Path], Iterable[Row | Problem]]] = {
        ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet,
    }  # fmt: skip
    if path.is_dir():
        yield from enumerate(_dataset(path), 1)
        return
    if path.suffix not in readers:
        raise InvalidFile(path, [Problem(0, "", f"unknown ending {path.suffix!r}: use one of {', '.join(readers)}")])
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidFile(path, [Problem(0, "", f"larger than {MAX_FILE_BYTES >> 30} GiB: split it")])
    first = 2 if path.suffix == ".csv" else 1  # a CSV file's first line has the names
    for number, row in enumerate(readers[path.suffix](path), first):
        if row is not None:
            yield (row.line, row) if isinstance(row, Problem) else (number, row)


def _jsonl(path: Path) -> Iterator[Any]:
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                yield None
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                yield Problem(number, "", f"not JSON ({error.msg} at column {error.colno})")
                continue
            yield row if isinstance(row, dict) else Problem(number, "", f"not an object but {type(row).__name__}")


def _json(path: Path) -> Iterator[Row | Problem]:
    """An array of rows, or an object that holds one under ``data``, ``items``, ``runs``, ``examples`` or ``traces``."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        yield Problem(error.lineno, "", f"not JSON ({error.msg} at column {error.colno})")
        return
    if isinstance(tree, dict):
        tree = next((tree[name] for name in ("data", "items", "runs", "examples", "traces") if name in tree), [tree])
    for number, row in enumerate(tree, 1):
        yield row if isinstance(row, dict) else Problem(number, "", f"not an object but {type(row).__name__}")


def _csv(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            kept: Row = {name: value for name, value in row.items() if value not in ("", None)}
            if "paraphrases" in kept:
                kept["paraphrases"] = [text.strip() for text in str(kept["paraphrases"]).split("|") if text.strip()]
            yield kept


def _parquet(path: Path) -> Iterator[Row]:
    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _dataset(folder: Path) -> Iterator[Row]:
    """What ``Dataset.save_to_disk`` writes: Arrow streams; or a folder of Parquet files."""
    files = sorted([*folder.rglob("*.arrow"), *folder.rglob("*.parquet")])
    for file in files:
        if file.suffix == ".parquet":
            yield from _parquet(file)
            continue
        with pa.memory_map(str(file)) as source:
            for batch in pa.ipc.open_stream(source):
                yield from batch.to_pylist()


def _lesson(row: Row) -> Row:
    """A row as a lesson line's fields. Besides lesson lines: chats, and what LangSmith and Langfuse export."""
    row = {name: value for name, value in row.items() if value is not None}
    if "question" in row and "answer" in row:
        return row
    answer = _corrected(row) or _text(row.get("reference_outputs"), ANSWER_NAMES)
    for name in ("answer", "expectedOutput", "expected_output", "outputs", "output"):
        answer = answer or _text(row.get(name), ANSWER_NAMES)
    question = next((t for name in (*QUESTION_NAMES, "inputs") if (t := _text(row.get(name), QUESTION_NAMES))), None)
    messages = row.get("messages") or []
    question = question or _said(messages, "user")
    answer = answer or _said(messages, "assistant")
    found = {"question": question, "answer": answer, "date": row.get("date")}
    return {name: value for name, value in found.items() if value is not None}


def _corrected(row: Row) -> str | None:
    """A person's correction: LangSmith's ``feedback[].correction``, Langfuse's score named ``correction``."""
    for said in (*(row.get("feedback") or ()), *(row.get("scores") or ())):
        if isinstance(said, dict):
            if said.get("correction"):
                return _text(said["correction"], ANSWER_NAMES)
            if said.get("name") == "correction":
                return _text(said.get("stringValue") or said.get("comment") or said.get("value"), ANSWER_NAMES)
    return _text(row.get("correction"), ANSWER_NAMES)


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
