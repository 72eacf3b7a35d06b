"""The event log: one table whose ``seq`` is given in commit order, so that a reader can tail it by number alone.

The words in a body are redacted and encrypted here, on their way in, and decrypted on their way out: what lies on
disk, and whatever is copied from it, is ciphertext.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, Select, func, insert, select, update

from pipeline.feedback.database import write_transaction
from pipeline.feedback.master_keys import FileKeyService, key_file
from pipeline.feedback.privacy import Redactor
from pipeline.feedback.records import Event, EventKind, NewEvent, check_text
from pipeline.feedback.tables import citations, sequence, tombstones
from pipeline.feedback.tables import events as table
from pipeline.feedback.vault import Vault

_CHUNK = 500  # identifiers in one IN (...): below every driver's limit on bound values
_GROUP = 256  # appends in one transaction
MAX_BACKLOG = 1_000_000  # events that wait for a sealer that has begun: a gigabyte or so
_STORED = [column for column in table.c if column.name not in ("part", "lesson_id")]
_TEXTS = ("event_id", "time", "tenant", "scope_id", "source", "feedback_id", "response_id")

_Group = tuple[str, str]  # (tenant, feedback_id)


class ErasedFeedback(ValueError):  # noqa: N818 - reads as what happened
    """What is being written was erased before, and a tombstone keeps it from coming back."""


class Backpressure(RuntimeError):  # noqa: N818
    """The sealer has fallen too far behind: its storage is away, and the log must not grow without bound."""


class _Prepared(NamedTuple):
    """An event as it will be returned, with its body's JSON."""

    event: NewEvent
    body: str


@dataclass
class _Append:
    """One caller's events on their way into a shared transaction."""

    prepared: list[_Prepared]
    result: list[Event] | BaseException | None = None
    leads: bool = False
    woken: threading.Event = field(default_factory=threading.Event)


class EventLog:
    """Appends and reads events; one object may be shared by threads, and many processes may open the same log."""

    def __init__(
        self,
        engine: Engine,
        *,
        vault: Vault | None = None,
        redactor: Redactor | None = None,
        max_backlog: int = MAX_BACKLOG,
    ) -> None:
        self.engine = engine
        self.max_backlog = max_backlog
        self.vault = vault or Vault(engine, FileKeyService(key_file(engine.url)))
        self.redactor = redactor or Redactor()
        self._mutex = threading.Lock()
        self._waiting: list[_Append] = []
        self._writing = False
        self._here = threading.local()  # the transaction that this thread's changes share, see :meth:`together`

    # writing

    @contextmanager
    def together(self) -> Iterator[None]:
        """Whatever this thread reads and appends inside is one transaction: many changes, one fsync at the end."""
        with write_transaction(self.engine) as connection:
            self._here.connection = connection
            try:
                yield
            finally:
                del self._here.connection

    def append(self, events: Sequence[NewEvent]) -> list[Event]:
        """All of ``events`` in one transaction, durable on return.

        A (tenant, feedback_id) that is already in the log adds nothing: its first events are returned instead; one
        that was erased raises :class:`ErasedFeedback`. Threads that append at the same time share a transaction, and
        so one fsync: the first writes for itself and for whoever waits, and then the first of those who came later.
        """
        if not events:
            return []
        if (connection := getattr(self._here, "connection", None)) is not None:
            return self.append_within(connection, events)
        mine = _Append(self._prepared(events))
        with self._mutex:
            self._waiting.append(mine)
            mine.leads = not self._writing
            self._writing = True
        if not mine.leads:
            mine.woken.wait()
        if mine.leads:
            self._write_group()
        if isinstance(mine.result, BaseException):
            raise mine.result
        assert mine.result is not None
        return mine.result

    def append_within(self, connection: Connection, events: Sequence[NewEvent]) -> list[Event]:
        """Append inside the caller's open :func:`write_transaction`, which from here on holds the counter's lock.

        The counter is locked before anything else is read, and until the transaction ends: whoever comes second
        waits, then sees the first one's events and takes higher numbers. A rollback gives its numbers back.
        """
        (result,) = self._append_all(connection, [self._prepared(events)])
        if isinstance(result, BaseException):
            raise result
        return result

    def _write_group(self) -> None:
        """Write everything that waits now, then hand the lead to the next."""
        with self._mutex:
            group, self._waiting = self._waiting[:_GROUP], self._waiting[_GROUP:]
        try:
            with write_transaction(self.engine) as connection:
                results = self._append_all(connection, [append.prepared for append in group])
            for append, result in zip(group, results, strict=True):
                append.result = result
        except BaseException as error:  # noqa: BLE001 - nobody's events were written: everybody has to know, Ctrl-C included
            for append in group:
                append.result = error
        with self._mutex:
            self._writing = bool(self._waiting)
            heirs = self._waiting[:1]
        for append in heirs:
            append.leads = True
        for append in (*heirs, *group):
            append.woken.set()

    def _prepared(self, events: Sequence[NewEvent]) -> list[_Prepared]:
        """Redacted and checked in the caller's own thread, so that one bad event fails nobody else's."""
        prepared = []
        for event in events:
            clean = NewEvent(**{**_fields(event), "body": self.redactor.body(event.body)})
            body = body_text(clean.body)
            texts = {name: getattr(clean, name, None) for name in _TEXTS}
            for name, value in (texts | {"lesson_id": _lesson_id(clean), "body": body}).items():
                check_text(name, value)
            prepared.append(_Prepared(clean, body))
        return prepared

    def _append_all(
        self, connection: Connection, appends: Sequence[Sequence[_Prepared]]
    ) -> list[list[Event] | BaseException]:
        """One result per append, in order; each sees the ones before it."""
        counter = sequence.c.name == "events"
        seq = connection.execute(select(sequence.c.value).where(counter).with_for_update()).scalar_one()
        self._check_backlog(connection, seq)
        everything = [prepared.event for append in appends for prepared in append]
        stored = self._known(connection, everything)
        erased = self._erased(connection, {group for group in map(_group, everything) if group} - stored.keys())
        writing: list[tuple[Event, str, int]] = []  # event, body, its place among the events of one feedback
        results: list[list[Event] | BaseException] = []
        for append in appends:
            groups = {group for prepared in append if (group := _group(prepared.event))}
            if gone := groups & erased:
                results.append(ErasedFeedback(f"feedback_id = {min(gone)[1]!r:.80}: it was erased and stays erased"))
                continue
            results.append(self._numbered(append, stored, writing, seq))
        if writing:
            self._insert(connection, writing)
            connection.execute(update(sequence).where(counter).values(value=seq + len(writing)))
        return results

    def _check_backlog(self, connection: Connection, head: int) -> None:
        sealed = connection.execute(select(sequence.c.value).where(sequence.c.name == "sealed")).scalar()
        if sealed is not None and head - sealed > self.max_backlog:
            raise Backpressure(
                f"{head - sealed} events wait to be sealed, at most {self.max_backlog} may: see why the feedback "
                "table's storage does not answer, then try again"
            )

    def _numbered(
        self,
        append: Sequence[_Prepared],
        stored: dict[_Group, list[Event]],
        writing: list[tuple[Event, str, int]],
        seq: int,
    ) -> list[Event]:
        """Give the append's new events the next numbers, and put them among those to write."""
        result: list[Event] = []
        own: dict[_Group, list[Event]] = {}
        returned: set[_Group] = set()
        for prepared in append:
            group = _group(prepared.event)
            if group is not None and group in stored:
                result.extend(() if group in returned else stored[group])
                returned.add(group)
                continue
            event = Event(**{**_fields(prepared.event), "seq": seq + len(writing) + 1})
            siblings = own.setdefault(group, []) if group else []
            writing.append((event, prepared.body, len(siblings)))
            siblings.append(event)
            result.append(event)
        stored.update(own)
        return result

    def _insert(self, connection: Connection, writing: Sequence[tuple[Event, str, int]]) -> None:
        keys = self.vault.keys_for(connection, [(event.tenant, event.source) for event, _, _ in writing])
        rows = [
            {
                **vars(event),
                "body": self.vault.seal(keys[event.tenant, event.source], event.event_id, body),
                "part": part,
                "lesson_id": _lesson_id(event),
            }
            for event, body, part in writing
        ]
        connection.execute(insert(table), rows)
        cited = {(event.seq, lesson_id) for event, _, _ in writing for lesson_id in cited_lessons(event)}
        if cited:
            connection.execute(insert(citations), [{"seq": s, "lesson_id": i} for s, i in sorted(cited)])

    def _known(self, connection: Connection, events: Iterable[NewEvent]) -> dict[_Group, list[Event]]:
        """Events already in the log, by the (tenant, feedback_id) that ``events`` name."""
        wanted = {group for group in map(_group, events) if group}
        rows: list[RowMapping] = []
        for names in _chunks(sorted({name for _, name in wanted})):
            query = select(*_STORED).where(table.c.feedback_id.in_(names)).order_by(table.c.seq)
            rows += connection.execute(query).mappings()
        found: dict[_Group, list[Event]] = {}
        if not rows:
            return found
        for event in self.opened([row for row in rows if (row["tenant"], row["feedback_id"]) in wanted]):
            found.setdefault((event.tenant, event.feedback_id or ""), []).append(event)
        return found

    def _erased(self, connection: Connection, groups: set[_Group]) -> set[_Group]:
        prints = {self.feedback_print(*group): group for group in groups}
        found: set[_Group] = set()
        for names in _chunks(sorted(prints)):
            query = select(tombstones.c.fingerprint).where(tombstones.c.fingerprint.in_(names))
            found |= {prints[name] for name in connection.scalars(query)}
        return found

    def feedback_print(self, tenant: str, feedback_id: str) -> str:
        """What a tombstone holds of a feedback id."""
        return self.vault.service.fingerprint(json.dumps(["feedback", tenant, feedback_id]))

    def rotate_master_key(self) -> int:
        """Wrap all keys under a new master key and destroy the old ones; returns the number of keys.

        Under the counter's lock, so that no writer wraps a new key under a master key that is about to go.
        """
        with write_transaction(self.engine) as connection:
            connection.execute(select(sequence.c.value).where(sequence.c.name == "events").with_for_update())
            self.vault.service.rotate()
            count = self.vault.rewrap(connection)
        self.vault.service.forget_old()
        return count

    # reading

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

    def note_sealed(self, seq: int) -> None:
        """Remember how far the sealer is, which bounds how far the log may run ahead; it never goes back."""
        row = sequence.c.name == "sealed"
        query = select(sequence.c.value).where(row)
        with self.engine.connect() as connection:
            if (connection.execute(query).scalar() or 0) >= seq:
                return
        with write_transaction(self.engine) as connection:
            if connection.execute(query).scalar() is None:
                connection.execute(insert(sequence).values(name="sealed", value=seq))
            connection.execute(update(sequence).where(row, sequence.c.value < seq).values(value=seq))

    def head(self) -> int:
        """The last committed ``seq``; 0 for an empty log."""
        with self.engine.connect() as connection:
            return int(connection.execute(select(sequence.c.value).where(sequence.c.name == "events")).scalar_one())

    def response(self, response_id: str) -> Event | None:
        """The answer event of ``response_id``."""
        query = select(*_STORED).where(table.c.response_id == response_id, table.c.kind == "answer")
        return next(iter(self._read(query.order_by(table.c.seq).limit(1))), None)

    def by_response(self, response_id: str) -> list[Event]:
        """The answer of ``response_id`` and all that was said about it, in order."""
        return self._read(select(*_STORED).where(table.c.response_id == response_id).order_by(table.c.seq))

    def by_feedback(self, tenant: str, feedback_id: str) -> list[Event]:
        """The events that one feedback caused, in order."""
        query = select(*_STORED).where(table.c.tenant == tenant, table.c.feedback_id == feedback_id)
        return self._read(query.order_by(table.c.seq))

    def by_lesson(self, tenant: str, lesson_id: str) -> list[Event]:
        """The lesson events of one slot, in order."""
        query = select(*_STORED).where(table.c.tenant == tenant, table.c.lesson_id == lesson_id)
        return self._read(query.order_by(table.c.seq))

    def lessons_of(self, tenant: str, source: str, since: str) -> list[Event]:
        """The lesson events of one source since a time."""
        return self._read(select(*_STORED).where(*_lessons_of(tenant, source, since)).order_by(table.c.seq))

    def count_lessons(self, tenant: str, source: str, since: str) -> int:
        """How many :meth:`lessons_of` would give, without reading a word of them."""
        query = select(func.count()).select_from(table).where(*_lessons_of(tenant, source, since))
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def citing(self, tenant: str, lesson_id: str) -> list[Event]:
        """The answers that cite one lesson, in order."""
        query = select(*_STORED).join(citations, citations.c.seq == table.c.seq)
        return self._read(
            query.where(citations.c.lesson_id == lesson_id, table.c.tenant == tenant).order_by(table.c.seq)
        )

    def opened(self, rows: Sequence[Any]) -> list[Event]:
        """Stored rows (mappings with an event's fields) as events; :class:`KeyUnavailable` where a key is missing."""
        bodies = self.vault.open([(row["event_id"], row["body"]) for row in rows])
        return [Event(**{**row, "body": json.loads(body)}) for row, body in zip(rows, bodies, strict=True)]

    def _read(self, query: Select[Any]) -> list[Event]:
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return self.opened(rows)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if (shared := getattr(self._here, "connection", None)) is not None:
            yield shared
            return
        with self.engine.connect() as connection:
            yield connection


def _lessons_of(tenant: str, source: str, since: str) -> tuple[ColumnElement[bool], ...]:
    return table.c.kind == "lesson", table.c.tenant == tenant, table.c.source == source, table.c.time >= since


def _range(seq: int, limit: int, through: int | None) -> Select[Any]:
    query = select(*_STORED).where(table.c.seq > seq).order_by(table.c.seq).limit(limit)
    return query if through is None else query.where(table.c.seq <= through)


def _fields(event: NewEvent) -> dict[str, Any]:
    return {name: value for name, value in vars(event).items() if name != "seq"}


def _group(event: NewEvent) -> _Group | None:
    return None if event.feedback_id is None else (event.tenant, event.feedback_id)


def _lesson_id(event: NewEvent) -> str | None:
    return event.body.get("lesson_id") if event.kind == "lesson" else None


def cited_lessons(event: NewEvent) -> list[str]:
    """The lessons that an answer cites."""
    return [cited["lesson_id"] for cited in event.body.get("lessons") or ()] if event.kind == "answer" else []


def body_text(body: dict[str, Any]) -> str:
    """The body as it is encrypted: JSON, in which a NUL of the user's text is only an escape."""
    return json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _chunks(names: list[str]) -> Iterable[list[str]]:
    return (names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK))
