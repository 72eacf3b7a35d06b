"""Rows of files, with the line of each: JSONL, JSON, CSV, Parquet, and folders that Hugging Face datasets wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

SHOWN_PROBLEMS = 20
MAX_FILE_BYTES = 2 << 30
HOLDERS = ("data", "items", "runs", "examples", "traces")  # under which an object holds its rows

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


Numbered = Iterator[tuple[int, Row | Problem]]


def read_rows(path: Path) -> Numbered:
    """Rows with the number of their line, or of the row where a format has no lines.

    Bytes that are not UTF-8 come through as lone surrogates, so that whoever looks at a row can say where they stand.
    """
    readers: dict[str, Callable[[Path], Numbered]] = {
        ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet,
    }  # fmt: skip
    if path.is_dir():
        yield from _dataset(path)
        return
    if path.suffix not in readers:
        raise InvalidFile(path, [Problem(0, "", f"unknown ending {path.suffix!r}: use one of {', '.join(readers)}")])
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidFile(path, [Problem(0, "", f"larger than {MAX_FILE_BYTES >> 30} GiB: split it")])
    yield from readers[path.suffix](path)


def _jsonl(path: Path) -> Numbered:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield number, _parsed(number, text)


def _parsed(number: int, text: str) -> Row | Problem:
    try:
        return _object(number, json.loads(text))
    except json.JSONDecodeError as error:
        return Problem(number, "", f"not JSON ({error.msg} at column {error.colno})")


def _object(number: int, found: Any) -> Row | Problem:
    return found if isinstance(found, dict) else Problem(number, "", f"not an object but {type(found).__name__}")


def _json(path: Path) -> Numbered:
    """An array of rows, or an object that holds one under one of :data:`HOLDERS`."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig", errors="surrogateescape"))
    except json.JSONDecodeError as error:
        yield error.lineno, Problem(error.lineno, "", f"not JSON ({error.msg} at column {error.colno})")
        return
    if isinstance(tree, dict):
        tree = next((tree[name] for name in HOLDERS if isinstance(tree.get(name), list)), [tree])
    if not isinstance(tree, list):
        tree = [tree]
    for number, row in enumerate(tree, 1):
        yield number, _object(number, row)


def _csv(path: Path) -> Numbered:
    """The first line has the names; ``paraphrases`` are separated by |."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            first = 1 + (reader.fieldnames is not None)  # the line that a row begins in: it may go over several
            for row in reader:
                yield first, _cells(first, row)
                first = reader.line_num + 1
        except csv.Error as error:
            yield reader.line_num, Problem(reader.line_num, "", f"not CSV ({error})")


def _cells(number: int, row: dict[Any, Any]) -> Row | Problem:
    if row.pop(None, None) is not None:
        return Problem(number, "", "more cells than the first line has names")
    kept: Row = {name: value for name, value in row.items() if value not in ("", None)}
    if "paraphrases" in kept:
        kept["paraphrases"] = [text.strip() for text in str(kept["paraphrases"]).split("|") if text.strip()]
    return kept


def _parquet(path: Path) -> Numbered:
    yield from _batches(lambda: pq.ParquetFile(path).iter_batches())


def _dataset(folder: Path) -> Numbered:
    """What ``Dataset.save_to_disk`` writes: Arrow streams; or a folder of Parquet files."""
    before = 0
    for file in sorted([*folder.rglob("*.arrow"), *folder.rglob("*.parquet")]):
        rows = _parquet(file) if file.suffix == ".parquet" else _batches(lambda file=file: _stream(file))  # type: ignore[misc]
        number = 0
        for number, row in rows:
            yield before + number, row
        before += number


def _stream(file: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(file)) as source:
        yield from pa.ipc.open_stream(source)


def _batches(opened: Callable[[], Iterable[pa.RecordBatch]]) -> Numbered:
    number = 0
    try:
        for batch in opened():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pa.ArrowException as error:
        yield number + 1, Problem(number + 1, "", f"cannot be read ({error})")
