"""Encoded wordings outlive a restart, and nothing else: not an erasure, not another encoder, not a damaged box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, text, update

from pipeline.data.lines import LessonLine
from pipeline.feedback.copies import erase
from pipeline.feedback.database import open_database
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.records import Event
from pipeline.feedback.tables import event_vectors
from pipeline.feedback.vectors import apply_kept, count_kept
from pipeline.home import Home
from pipeline.memory.router import load_router
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Viewer
from pipeline.model.encoder import Encoder, Vectors, load_encoder

COUNT, WORTH = 12, 10
TEACHER, OTHER = Key("tim", "teach"), Key("oda", "teach")


class Counted:
    """The default encoder, and how many texts it was given; ``flipped``: other weights under the same name."""

    def __init__(self, flipped: bool = False) -> None:
        self._encoder = load_encoder(device="cpu")
        self.name, self.dimension = self._encoder.name, self._encoder.dimension
        self.asked = 0
        self._sign = np.float32(-1 if flipped else 1)

    def encode(self, inputs: Sequence[str]) -> Vectors:
        self.asked += len(inputs)
        vectors: Vectors = self._sign * self._encoder.encode(inputs)
        return vectors


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def filled(request: pytest.FixtureRequest) -> Iterator[EventLog]:
    """A log with ``COUNT`` lessons, every other one of another teacher, each with a phrasing."""
    log = EventLog(open_database(request.getfixturevalue(request.param)))
    with log.engine.begin() as connection:
        connection.execute(text("DELETE FROM events"))  # of another test on the same server
    for number in range(COUNT):
        line = LessonLine(
            question=f"What is the code of room {number}?", answer=str(number), paraphrases=(f"Code of room {number}?",)
        )
        record_lesson(log, line, key=(TEACHER, OTHER)[number % 2])
    yield log
    log.engine.dispose()


def started(log: EventLog, encoder: Encoder, events: Sequence[Event] | None = None) -> LessonMemory:
    memory = LessonMemory(encoder, load_router())
    apply_kept(log, memory, list(log.pages()) if events is None else events, WORTH)
    return memory


def rows(log: EventLog) -> int:
    return count_kept(log.engine)


def test_a_restart_encodes_only_what_is_new(filled: EventLog) -> None:
    first, again = Counted(), Counted()
    before, after = started(filled, first), started(filled, again)
    assert (first.asked, again.asked) == (2 * COUNT, 1)  # the one that shows that the encoder is still the same
    questions = ["Which code opens room 3?", "What is the code of room 12?"]
    assert before.read(questions, [Viewer()] * 2) == after.read(questions, [Viewer()] * 2)
    record_lesson(filled, LessonLine(question="Who keeps the codes?", answer="Oda"), key=OTHER)
    later = Counted()
    started(filled, later)
    assert later.asked == 1 + 1
    assert rows(filled) == COUNT + 1


def test_single_corrections_wait_for_no_disk(filled: EventLog) -> None:
    started(filled, Counted(), list(filled.pages())[: WORTH - 1])
    assert rows(filled) == 0


def test_what_is_kept_is_encrypted_and_erased_with_its_event(
    filled: EventLog, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGM_FEEDBACK_URL", raising=False)
    read_before = list(filled.pages())
    encoder = Counted()
    started(filled, encoder, read_before)
    plain = encoder.encode(["What is the code of room 0?"]).astype(np.float16).tobytes()
    with filled.engine.connect() as connection:
        boxes = connection.scalars(select(event_vectors.c.box)).all()
    assert len(boxes) == COUNT
    assert not any(plain[:32] in box for box in boxes)
    erase(Home(tmp_path / "home").create(), filled, Target(sources=("oda",)))
    assert rows(filled) == COUNT // 2
    slow = LessonMemory(Counted(flipped=True), load_router())  # a replica that had read the log before, and is done now
    apply_kept(filled, slow, read_before, WORTH)
    assert rows(filled) == COUNT // 2


def test_another_encoder_under_the_same_name_is_noticed(filled: EventLog) -> None:
    started(filled, Counted())
    flipped, again = Counted(flipped=True), Counted(flipped=True)
    started(filled, flipped)
    assert flipped.asked == 1 + 2 * COUNT
    started(filled, again)
    assert again.asked == 1
    assert rows(filled) == COUNT


def test_what_is_damaged_is_encoded_again(filled: EventLog) -> None:
    started(filled, Counted())
    with filled.engine.begin() as connection:
        (one,) = connection.execute(select(event_vectors).limit(1)).mappings()
        moved = update(event_vectors).where(event_vectors.c.event_id != one["event_id"]).values(box=one["box"])
        connection.execute(moved.where(event_vectors.c.key_id == one["key_id"]))
    damaged = (COUNT // 2 - 1) * 2
    mended, again = Counted(), Counted()
    started(filled, mended)
    assert mended.asked == 1 + damaged
    started(filled, again)
    assert again.asked == 1
