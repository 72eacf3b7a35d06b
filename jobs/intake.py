"""Lesson lines straight into the event log, as an administrator at the terminal teaches them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from sqlalchemy import Engine

from pipeline.data.lines import LessonLine, read_lines
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_lesson
from pipeline.feedback.keys import Key

TERMINAL = Key(name="terminal", role="admin")


def line_id(line: LessonLine) -> str:
    """The same line has the same idempotency key, so that a file sent twice is taught once."""
    return "line_" + sha256(line.model_dump_json(exclude_none=True).encode()).hexdigest()[:40]


def take_in(engine: Engine, file: Path) -> int:
    """Every line of ``file`` as a lesson; returns how many were new. All lines are read before one is written."""
    log = EventLog(engine)
    receipts = [
        record_lesson(log, line, key=TERMINAL, feedback_id=line_id(line)) for line in read_lines(file, LessonLine)
    ]
    return sum(not receipt.duplicate for receipt in receipts)
