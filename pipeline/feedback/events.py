"""The event log: one table whose ``seq`` is given in commit order, so that a reader can tail it by number alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, Select, insert, select, update

from pipeline.feedback.database import write_transaction
from pipeline.feedback.records import Event, EventKind, NewEvent
from pipeline.feedback.tables import events as table
from pipeline.feedback.tables import sequence

_CHUNK = 500  # identifiers in one IN (...): below every driver's limit on bound values
_STORED = [column for column in table.c if column.name not in ("part", "lesson_id")]
_TEXTS = ("event_id", "time", "tenant", "scope_id", "source", "feedback_id", "response_id", "lesson_id", "body")

_Group = tuple[str, str]  # (tenant, feedback_id)


class EventLog:
    """Appends and reads events; one object may be shared by threads, and many processes may open the same log."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # Threads of one process queue here in order; SQLite's own waiting is by sleeping, and unfair.
        self._turn = threading.Lock()

    def append(self, events: Sequence[NewEvent]) -> list[Event]:
        """All of ``events`` in one transaction, durable on return.

        A (tenant, feedback_id) that is already in the log adds nothing: its first events are returned instead.
        """
        if not events:
            return []
        with self._turn, write_transaction(self.engine) as connection:
            return append_within(connection, events)

    def after(
        self,
        seq: int,
        *,
        kinds: Collection[EventKind] | None = None,
        limit: int = 10_000,
        through: int | None = None,
    ) -> list[Event]:
        """Up to ``limit`` events with ``seq`` < event.seq <= ``through``, in order."""
        query = select(*_STORED).where(table.c.seq > seq).order_by(table.c.seq).limit(limit)
        if kinds is not None:
            query = query.where(table.c.kind.in_(list(kinds)))
        if through is not None:
            query = query.where(table.c.seq <= through)
        return self._read(query)

    def head(self) -> int:
        """The last committed ``seq``; 0 for an empty log."""
        with self.engine.connect() as connection:
            return int(connection.execute(select(sequence.c.value).where(sequence.c.name == "events")).scalar_one())

    def response(self, response_id: str) -> Event | None:
        """The answer event of ``response_id``."""
        query = select(*_STORED).where(table.c.response_id == response_id, table.c.kind == "answer")
        return next(iter(self._read(query.order_by(table.c.seq).limit(1))), None)

    def by_feedback(self, tenant: str, feedback_id: str) -> list[Event]:
        """The events that one feedback caused, in order."""
        query = select(*_STORED).where(table.c.tenant == tenant, table.c.feedback_id == feedback_id)
        return self._read(query.order_by(table.c.seq))

    def by_lesson(self, tenant: str, lesson_id: str) -> list[Event]:
        """The lesson events of one slot, in order."""
        query = select(*_STORED).where(table.c.tenant == tenant, table.c.lesson_id == lesson_id)
        return self._read(query.order_by(table.c.seq))

    def _read(self, query: Select[Any]) -> list[Event]:
        with self.engine.connect() as connection:
            return [_event(row) for row in connection.execute(query).mappings()]


def append_within(connection: Connection, events: Sequence[NewEvent]) -> list[Event]:
    """Append inside the caller's open :func:`write_transaction`, which from here on holds the counter's lock.

    The counter is locked before anything else is read, and until the transaction ends: whoever comes second
    waits, then sees the first one's events and takes higher numbers. A rollback gives its numbers back.
    """
    counter = sequence.c.name == "events"
    seq = connection.execute(select(sequence.c.value).where(counter).with_for_update()).scalar_one()
    stored = _stored(connection, events)
    rows: list[dict[str, Any]] = []
    result: list[Event] = []
    answered: dict[_Group, int] = {}  # groups met so far, with the number of their events
    for new in events:
        group = _group(new)
        part = answered.get(group, 0) if group else 0
        if group:
            answered[group] = part + 1
        if group in stored:
            result.extend(stored[group] if part == 0 else ())
            continue
        event = Event(**{**vars(new), "seq": seq + len(rows) + 1})
        rows.append(_row(event, part))
        result.append(event)
    if rows:
        connection.execute(update(sequence).where(counter).values(value=seq + len(rows)))
        connection.execute(insert(table), rows)
    return result


def _group(event: NewEvent) -> _Group | None:
    return None if event.feedback_id is None else (event.tenant, event.feedback_id)


def _stored(connection: Connection, events: Iterable[NewEvent]) -> dict[_Group | None, list[Event]]:
    """Events already in the log, by the (tenant, feedback_id) that ``events`` name."""
    wanted = {_group(event) for event in events} - {None}
    names = sorted({group[1] for group in wanted if group})
    found: dict[_Group | None, list[Event]] = {}
    for start in range(0, len(names), _CHUNK):
        query = select(*_STORED).where(table.c.feedback_id.in_(names[start : start + _CHUNK])).order_by(table.c.seq)
        for event in map(_event, connection.execute(query).mappings()):
            if _group(event) in wanted:
                found.setdefault(_group(event), []).append(event)
    return found


def _row(event: Event, part: int) -> dict[str, Any]:
    lesson_id = event.body.get("lesson_id") if event.kind == "lesson" else None
    row = {**vars(event), "body": body_text(event.body), "part": part, "lesson_id": lesson_id}
    for name in _TEXTS:
        _check_text(name, row[name])
    return row


def _check_text(name: str, value: str | None) -> None:
    if value is not None and ("\x00" in value or any("\ud800" <= character <= "\udfff" for character in value)):
        raise ValueError(f"{name} = {value!r:.80}: holds a character that no database text can keep (NUL or surrogate)")


def body_text(body: dict[str, Any]) -> str:
    """The body as it is stored: JSON, in which a NUL of the user's text is only an escape."""
    return json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _event(row: RowMapping) -> Event:
    return Event(**{**row, "body": json.loads(row["body"])})
