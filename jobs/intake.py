"""Lesson lines straight into the event log, as an administrator at the terminal teaches them."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from pipeline.config import Recipe
from pipeline.feedback.events import EventLog
from pipeline.feedback.exchange import import_lines, read_feedback
from pipeline.feedback.keys import Key
from pipeline.feedback.privacy import Redactor

TERMINAL = Key(name="terminal", role="admin")


def redacting_log(engine: Engine, recipe: Recipe) -> EventLog:
    """The log as whoever writes at the terminal opens it: with the recipe's redaction, as the endpoint."""
    return EventLog(engine, redactor=Redactor.of(recipe.feedback))


def take_in(log: EventLog, file: Path) -> int:
    """Every line of ``file`` as a lesson; returns how many were new. All lines are read before one is written."""
    return import_lines(log, read_feedback(file), TERMINAL).new
