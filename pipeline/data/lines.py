"""The two file formats that users write: lesson lines and probe lines (JSONL)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.memory.types import moment

MAX_TEXT = 4_000


class LineError(ValueError):
    """A line of a data file is not what the format asks for; the message names file, line, field and value."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("nothing but white space")
    return text


Told = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_not_blank)]


class OpenLine(BaseModel):
    """A line whose unknown fields are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def extra(self, name: str, default: Any = None) -> Any:
        """A field of the file's own."""
        return (self.model_extra or {}).get(name, default)


class LessonLine(OpenLine):
    """One correction: ``question`` and ``answer`` are required, unknown fields are kept."""

    question: Told
    answer: Told
    id: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    neighbour_answers: tuple[str, ...] = ()
    previous: str | None = None
    date: str | None = None
    source: str | None = None
    subject: str | None = None
    scope: str | None = None
    expires: Annotated[str, AfterValidator(moment)] | None = None  # a date or a time; not read from then on


class ProbeLine(OpenLine):
    """One question, with the accepted answers where they are known."""

    question: str = Field(min_length=1, max_length=MAX_TEXT)
    id: str | None = None
    answers: tuple[str, ...] = ()


class RetentionProbe(OpenLine):
    """An unchanging fact with distractors of the same type."""

    question: str = Field(min_length=1, max_length=MAX_TEXT)
    answer: str = Field(min_length=1)
    distractors: tuple[str, ...] = Field(min_length=1)
    id: str | None = None
    topic: str | None = None


Line = TypeVar("Line", bound=BaseModel)


def read_lines(path: str | Path, kind: type[Line]) -> list[Line]:
    """Every line of a JSONL file as ``kind``; :class:`LineError` names the first line that does not fit."""
    return list(_parse(path, kind))


def _parse(path: str | Path, kind: type[Line]) -> Iterator[Line]:
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                yield kind.model_validate(json.loads(text))
            except json.JSONDecodeError as error:
                raise LineError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from None
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or "the line"
                raise LineError(
                    f"{path}, line {number}, field {field!r}: {first['msg']}, got {first['input']!r:.80}"
                ) from None


def write_lines(path: str | Path, lines: Iterable[BaseModel] | Sequence[BaseModel]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(line.model_dump_json(exclude_none=True) + "\n" for line in lines)
