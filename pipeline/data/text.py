"""Text to pretrain on: plain text, JSONL, Parquet, Arrow, or a folder of these such as a Hugging Face dataset's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 1024  # read at a time
PLAIN, LINES, PARQUET, ARROW = (".txt", ".md"), (".jsonl", ".ndjson"), (".parquet",), (".arrow",)


class TextError(ValueError):
    """A path holds no text that can be read."""


def text_files(paths: Iterable[Path]) -> list[Path]:
    """The files that ``paths`` name, folders searched through, each once."""
    known = (*PLAIN, *LINES, *PARQUET, *ARROW)
    found: dict[Path, None] = {}
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix in known) if path.is_dir() else [path]
        if not inside or not path.exists() or any(file.suffix not in known for file in inside):
            raise TextError(f"{path}: expected a file or a folder of files ending in {', '.join(known)}")
        found |= dict.fromkeys(file.resolve() for file in inside)
    return list(found)


def documents(files: Sequence[Path], column: str = "text") -> Iterator[str]:
    """The documents of every file: a plain file is one, in the others ``column`` of each row is."""
    for file in files:
        if file.suffix in PLAIN:
            yield file.read_text(encoding="utf-8")
        elif file.suffix in LINES:
            yield from _lines(file, column)
        else:
            yield from _rows(file, column)


def _lines(file: Path, column: str) -> Iterator[str]:
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise TextError(f"{file}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                fields = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise TextError(f"{file}, line {number}: no text in {column!r} (there is {fields}): name the column")
            yield row[column]


def _rows(file: Path, column: str) -> Iterator[str]:
    for batch in _batches(file, column):
        yield from (text for text in batch.column(column).to_pylist() if text is not None)


def _batches(file: Path, column: str) -> Iterator[pa.RecordBatch]:
    if file.suffix in PARQUET:
        table = pq.ParquetFile(file)
        _check(file, column, table.schema_arrow)
        yield from table.iter_batches(ROWS, columns=[column])
        return
    with pa.memory_map(str(file)) as source:
        stream = pa.ipc.open_stream(source)
        _check(file, column, stream.schema)
        yield from stream


def _check(file: Path, column: str, schema: pa.Schema) -> None:
    if column not in schema.names:
        raise TextError(f"{file}: no column {column!r} (there is {', '.join(schema.names)}): name the column")
