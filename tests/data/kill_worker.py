"""What the kill trials kill: each role is the work of one process, from its start, again and again.

A writer notes what was acknowledged in a file, after the acknowledgement; what the system has in its page cache
outlives the process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pipeline.config import FeedbackSettings, Recipe
from pipeline.data.lines import LessonLine
from pipeline.feedback.compaction import compact
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_answer, record_feedback, record_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.manifest import cycle_history, cycle_lessons
from pipeline.feedback.sealer import Sealer
from pipeline.home import Home
from pipeline.train.cycle import VERDICT, open_cycle

RETRIED = 5  # ids that a writer sends again after it was killed, since it may not have heard of them
ASKER, TEACHER = Key("eva", "ask"), Key("tim", "teach")


def opened(root: str) -> tuple[Home, EventLog]:
    home = Home(Path(root))
    return home, EventLog(open_database(home.events_url))


def write(root: str, name: str) -> None:
    """Lessons, answers, and corrections of answers; each acknowledged id becomes a line of ``NAME.acks``."""
    _, log = opened(root)
    acks = Path(root, f"{name}.acks")
    known = acks.read_text().splitlines() if acks.exists() else []
    number = max(0, len(known) - RETRIED)
    file = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        number += 1
        feedback_id = f"{name}-{number}"
        if number % 2:
            line = LessonLine(question=f"{name} {number}?", answer=str(number))
            receipt = record_lesson(log, line, key=TEACHER, feedback_id=feedback_id)
        else:
            asked = f"{name} {number}?"
            turns = [{"role": "user", "content": asked}]
            said = record_answer(log, key=ASKER, question=asked, answer="?", messages=turns, store=True)
            receipt = record_feedback(
                log,
                response_id=str(said.response_id),
                kind="correction",
                value="!1",
                key=ASKER,
                feedback_id=feedback_id,
            )
        if number > len(known):
            os.write(file, f"{receipt.feedback_id} {receipt.seq}\n".encode())


def seal(root: str, _name: str) -> None:
    home, log = opened(root)
    sealer = Sealer(log, home.feedback_table, batch=20)
    while True:
        sealer.drain()


def shrink(root: str, _name: str) -> None:
    home, log = opened(root)
    while True:
        compact(home.feedback_table, log, FeedbackSettings(keep_versions_hours=0))


def cycle(root: str, _name: str) -> None:
    """A cycle without its training: drain, manifest, lessons, verdict; each from where the one before ended."""
    home, log = opened(root)
    recipe = Recipe().with_changes({"train.seed": 7})
    while True:
        done = [json.loads(file.read_text())["to_seq"] for file in home.cycles.glob("*/trained.json")]
        folder, manifest = open_cycle(home, log, max(done, default=0), recipe)
        lessons = cycle_lessons(cycle_history(home.feedback_table, log, manifest), manifest)
        partial = folder / "partial"
        partial.write_text(json.dumps({"to_seq": manifest.to_seq, "lessons": list(lessons)}))
        partial.replace(folder / "trained.json")
        (folder / VERDICT).write_text("null\n", encoding="utf-8")


ROLES = {"writer": write, "sealer": seal, "compactor": shrink, "cycle": cycle}


def work(role: str, root: str, name: str) -> None:
    ROLES[role](root, name)
