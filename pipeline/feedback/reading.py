"""Reading the event log: by place, by what an event is about, and by who said it; bodies are decrypted on their way."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, Engine, Select, bindparam, func, select

from pipeline.feedback.records import Event, EventKind
from pipeline.feedback.tables import citations, sequence
from pipeline.feedback.tables import events as table
from pipeline.feedback.vault import Vault, chunks


def _of_kind(kind: EventKind) -> ColumnElement[bool]:
    """An expression, not the column: SQLite would prefer the index on kinds and go through all events of one kind."""
    return func.lower(table.c.kind) == kind


# Statements that are run for every request are made once: putting one together costs more than running it.
STORED = select(*(column for column in table.c if column.name not in ("part", "lesson_id")))
NAMES: BindParameter[str] = bindparam("names", expanding=True)
TENANTS: BindParameter[str] = bindparam("tenants", expanding=True)
_HEAD = select(sequence.c.value).where(sequence.c.name == "events")
_RESPONSES = STORED.where(table.c.response_id.in_(NAMES), _of_kind("answer")).order_by(table.c.seq)
_LATELY = (
    table.c.kind == "lesson", table.c.tenant == bindparam("tenant"), table.c.time >= bindparam("since"),
)  # fmt: skip
_SAID = STORED.where(*_LATELY, table.c.source == bindparam("source")).order_by(table.c.seq)
_COUNT_BY_SOURCE = (
    select(table.c.source, func.count()).where(*_LATELY, table.c.source.in_(NAMES)).group_by(table.c.source)
)
_COUNT_BY_KEY = (
    select(table.c.key_name, func.count())
    .where(*_LATELY, table.c.key_name.in_(NAMES), table.c.role == "ask")
    .group_by(table.c.key_name)
)

_RECORDED = select(table.c.feedback_id).where(table.c.tenant == bindparam("tenant"), table.c.feedback_id.in_(NAMES))


class EventReader:
    """What a log holds; one object may be shared by threads."""

    def __init__(self, engine: Engine, vault: Vault) -> None:
        self.engine = engine
        self.vault = vault
        self._here = threading.local()  # the transaction that this thread's changes share, see EventLog.together

    def after(
        self,
        seq: int,
        *,
        kinds: Collection[EventKind] | None = None,
        limit: int = 10_000,
        through: int | None = None,
    ) -> list[Event]:
        """Up to ``limit`` events with ``seq`` < event.seq <= ``through``, in order."""
        query = _range(seq, limit, through)
        return self._read(query if kinds is None else query.where(table.c.kind.in_(list(kinds))))

    def pages(self, seq: int = 0, *, kinds: Collection[EventKind] | None = None) -> Iterator[Event]:
        """Every event after ``seq``, read page by page."""
        while page := self.after(seq, kinds=kinds):
            yield from page
            seq = page[-1].seq

    def rows_after(self, seq: int, *, limit: int = 10_000, through: int | None = None) -> list[dict[str, Any]]:
        """The same as stored rows, bodies encrypted: what the sealer copies without a key."""
        query = _range(seq, limit, through).add_columns(table.c.lesson_id)
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def head(self) -> int:
        """The last committed ``seq``; 0 for an empty log."""
        with self.engine.connect() as connection:
            return int(connection.execute(_HEAD).scalar_one())

    def response(self, response_id: str) -> Event | None:
        """The answer event of ``response_id``."""
        return self.responses([response_id]).get(response_id)

    def responses(self, response_ids: Iterable[str]) -> dict[str, Event]:
        """The answer events of those response ids that were given."""
        found: dict[str, Event] = {}
        for names in chunks(sorted(set(response_ids))):
            for event in self._read(_RESPONSES, {"names": names}):
                found.setdefault(event.response_id or "", event)
        return found

    def by_response(self, response_id: str) -> list[Event]:
        """The answer of ``response_id`` and all that was said about it, in order."""
        return self._read(STORED.where(table.c.response_id == response_id).order_by(table.c.seq))

    def by_feedback(self, tenant: str, feedback_id: str) -> list[Event]:
        """The events that one feedback caused, in order."""
        query = STORED.where(table.c.tenant == tenant, table.c.feedback_id == feedback_id)
        return self._read(query.order_by(table.c.seq))

    def recorded(self, tenant: str, feedback_ids: Collection[str]) -> set[str]:
        """Those of the feedback ids that are in the log already."""
        found: set[str] = set()
        with self._reading() as connection:
            for part in chunks(sorted(feedback_ids)):
                found |= set(connection.scalars(_RECORDED, {"tenant": tenant, "names": part}))
        return found

    def by_lesson(self, tenant: str, lesson_id: str) -> list[Event]:
        """The lesson events of one slot, in order."""
        query = STORED.where(table.c.tenant == tenant, table.c.lesson_id == lesson_id)
        return self._read(query.order_by(table.c.seq))

    def said_lately(self, tenant: str, source: str, since: str) -> list[Event]:
        """The lesson events of one source since a time."""
        return self._read(_SAID, {"tenant": tenant, "source": source, "since": since})

    def count_said(self, tenant: str, sources: Collection[str], since: str) -> dict[str, int]:
        """How many lesson events each of these sources has caused since a time, without reading a word of them."""
        return self._counted(_COUNT_BY_SOURCE, tenant, sources, since)

    def count_by_key(self, tenant: str, keys: Collection[str], since: str) -> dict[str, int]:
        """The same for all that askers said with each of these keys, whatever sources it spoke for."""
        return self._counted(_COUNT_BY_KEY, tenant, keys, since)

    def _counted(self, query: Select[Any], tenant: str, names: Collection[str], since: str) -> dict[str, int]:
        found: dict[str, int] = {}
        with self._reading() as connection:
            for part in chunks(sorted(names)):
                rows = connection.execute(query, {"tenant": tenant, "names": part, "since": since})
                found |= dict(row for row in rows)
        return found

    def citing(self, tenant: str, lesson_id: str, kind: EventKind = "answer") -> list[Event]:
        """The answers that cite one lesson, in order; of ``kind`` "lesson" the corrections that are evidence for it."""
        query = STORED.join(citations, citations.c.seq == table.c.seq)
        wanted = (citations.c.lesson_id == lesson_id, table.c.tenant == tenant, _of_kind(kind))
        return self._read(query.where(*wanted).order_by(table.c.seq))

    def opened(self, rows: Sequence[Any]) -> list[Event]:
        """Stored rows (mappings with an event's fields) as events; :class:`KeyUnavailable` where a key is missing."""
        bodies = self.vault.open([(row["event_id"], row["body"]) for row in rows])
        return [Event(**{**row, "body": json.loads(body)}) for row, body in zip(rows, bodies, strict=True)]

    def _read(self, query: Select[Any], values: Mapping[str, Any] | None = None) -> list[Event]:
        with self._reading() as connection:
            rows = connection.execute(query, values or {}).mappings().all()
        return self.opened(rows)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if (shared := getattr(self._here, "connection", None)) is not None:
            yield shared
            return
        with self.engine.connect() as connection:
            yield connection


def _range(seq: int, limit: int, through: int | None) -> Select[Any]:
    query = STORED.where(table.c.seq > seq).order_by(table.c.seq).limit(limit)
    return query if through is None else query.where(table.c.seq <= through)
