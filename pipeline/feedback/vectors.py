"""Encoded wordings that last: a restart replays the log and encodes only what no start before it has.

Encoding is nearly all of what a replay costs. The vectors of a lesson event lie beside it, in the same database, under
the same key as its words, and go when it goes; whoever follows single corrections neither waits for them nor writes
them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from sqlalchemy import Engine, delete, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from pipeline.feedback.database import write_transaction
from pipeline.feedback.events import LOCKED_HEAD, EventLog
from pipeline.feedback.records import Event
from pipeline.feedback.tables import event_vectors as table
from pipeline.feedback.tables import events as log_table
from pipeline.feedback.vault import KeyUnavailable, chunks
from pipeline.memory.store import LessonMemory, wordings
from pipeline.model.encoder import Encoder, Vectors

log = logging.getLogger("pipeline.feedback.vectors")

WORTH = 64  # lesson events at once: fewer are encoded sooner than a transaction is on disk
SAME = 0.999  # cosine of one text with itself; half precision costs 1e-4

ByText = dict[str, Vectors]


def apply_kept(events_log: EventLog, memory: LessonMemory, events: Sequence[Event], worth: int = WORTH) -> int:
    """``memory.apply(events)``, with the vectors that there are, and keeping those that there were not.

    Below ``worth`` lesson events it is ``memory.apply`` alone.
    """
    taught = [event for event in events if wordings(event)]
    if len(taught) < worth:
        return memory.apply(events)
    kept = _KeptVectors(events_log, memory.encoder)
    found = kept.find(taught)
    fresh: ByText = {}

    def encode(texts: Sequence[str]) -> Vectors:
        missing = [text for text in texts if text not in found]
        if missing:
            fresh.update(zip(missing, memory.encoder.encode(missing), strict=True))
        return np.stack([fresh[text] if text in fresh else found[text] for text in texts])

    seq = memory.apply(events, encode)
    if fresh:
        try:
            kept.keep(taught, found, fresh)
        except SQLAlchemyError:  # the border of a cache: the memory knows them, and the next start encodes them again
            log.warning("the lessons' encoded wordings could not be kept", exc_info=True)
    return seq


def count_kept(engine: Engine) -> int:
    """How many lesson events have their wordings encoded."""
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


class _KeptVectors:
    """The vectors of one encoder, by the events whose wordings they are."""

    def __init__(self, events_log: EventLog, encoder: Encoder) -> None:
        self._log = events_log
        self._encoder = encoder

    def find(self, events: Sequence[Event]) -> ByText:
        """What is kept of the events' wordings; nothing where the encoder has changed under its name."""
        texts = {event.event_id: wordings(event) for event in events}
        query = select(table.c.event_id, table.c.key_id, table.c.box).where(table.c.encoder == self._encoder.name)
        found: ByText = {}
        for part in chunks(list(texts)):
            with self._log.engine.connect() as connection:
                rows = connection.execute(query.where(table.c.event_id.in_(part))).all()
            self._log.vault.fetch(row.key_id for row in rows)
            for event_id, key, box in rows:
                found |= self._opened(event_id, key, box, texts[event_id])
        return found if self._still_true(found) else {}

    def _opened(self, event_id: str, key: str, box: bytes, texts: Sequence[str]) -> ByText:
        try:
            flat = np.frombuffer(self._log.vault.open_bytes(key, self._place(event_id), box), np.float16)
        except KeyUnavailable:
            return {}  # a cache: they are encoded again
        if flat.size != len(texts) * self._encoder.dimension:
            return {}
        return dict(zip(texts, flat.reshape(len(texts), -1).astype(np.float32), strict=True))

    def _still_true(self, found: ByText) -> bool:
        """One of them is encoded again, because weights may be replaced where their name says nothing of it."""
        text = next(iter(found), None)
        if text is None or float(found[text] @ self._encoder.encode([text])[0]) >= SAME:
            return True
        log.warning("encoder %s has changed: the lessons' wordings are encoded anew", self._encoder.name)
        return False

    def keep(self, events: Sequence[Event], found: Mapping[str, Vectors], fresh: Mapping[str, Vectors]) -> None:
        """The vectors of events that have a fresh wording, in place of what was kept of them."""
        known = {**found, **fresh}
        new = {
            event.event_id: event
            for event in events
            if any(text in fresh for text in wordings(event)) and all(text in known for text in wordings(event))
        }
        for part in chunks(list(new)):
            self._write([new[event_id] for event_id in part], known)

    def _write(self, events: Iterable[Event], known: Mapping[str, Vectors]) -> None:
        """Under the counter's lock, as an erasure: what was erased meanwhile has no row to belong to."""
        by_id = {event.event_id: event for event in events}
        with write_transaction(self._log.engine) as connection:
            connection.execute(LOCKED_HEAD)
            there = set(connection.scalars(select(log_table.c.event_id).where(log_table.c.event_id.in_(by_id))))
            standing = [event for event_id, event in by_id.items() if event_id in there]
            keys = self._log.vault.keys_for(connection, [(event.tenant, event.source) for event in standing])
            connection.execute(
                delete(table).where(table.c.encoder == self._encoder.name, table.c.event_id.in_(sorted(there)))
            )
            rows = [
                {
                    "event_id": event.event_id,
                    "encoder": self._encoder.name,
                    "key_id": (key := keys[event.tenant, event.source]),
                    "box": self._box(key, event, known),
                }
                for event in standing
            ]
            if rows:
                connection.execute(insert(table), rows)

    def _box(self, key: str, event: Event, known: Mapping[str, Vectors]) -> bytes:
        vectors = np.stack([known[text] for text in wordings(event)]).astype(np.float16)
        return self._log.vault.seal_bytes(key, self._place(event.event_id), vectors.tobytes())

    def _place(self, event_id: str) -> str:
        return f"{event_id}/{self._encoder.name}"
