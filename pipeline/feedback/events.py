"""The event log: one table whose ``seq`` is given in commit order, so that a reader can tail it by number alone.

The words in a body are redacted and encrypted here, on their way in, and decrypted on their way out: what lies on
disk, and whatever is copied from it, is ciphertext.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, RowMapping, bindparam, insert, select, update

from pipeline.feedback.database import write_transaction
from pipeline.feedback.master_keys import FileKeyService, key_file
from pipeline.feedback.privacy import Redactor
from pipeline.feedback.reading import NAMES, STORED, TENANTS, EventReader
from pipeline.feedback.records import Event, NewEvent, attempt, check_text, with_the_sound
from pipeline.feedback.tables import citations, sequence, tombstones
from pipeline.feedback.tables import events as table
from pipeline.feedback.vault import Vault, chunks
from pipeline.memory.belief import evidence_for

_GROUP = 256  # appends in one transaction
MAX_BACKLOG = 1_000_000  # events that wait for a sealer that has begun: a gigabyte or so
_COUNTER = sequence.c.name == "events"
LOCKED_HEAD = select(sequence.c.value).where(_COUNTER).with_for_update()
_ADVANCE = update(sequence).where(_COUNTER).values(value=bindparam("head"))
_SEALED = select(sequence.c.value).where(sequence.c.name == "sealed").scalar_subquery()
_HEAD = select(sequence.c.value, _SEALED).where(_COUNTER).with_for_update()
# The tenants, or SQLite would find no index and read the whole log.
_KNOWN = STORED.where(table.c.tenant.in_(TENANTS), table.c.feedback_id.in_(NAMES)).order_by(table.c.seq)
_ERASED = select(tombstones.c.fingerprint).where(tombstones.c.fingerprint.in_(NAMES))
_TEXTS = ("event_id", "time", "tenant", "scope_id", "source", "feedback_id", "response_id")

_JSON = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))

_Group = tuple[str, str]  # (tenant, feedback_id)


class ErasedFeedback(ValueError):  # noqa: N818 - reads as what happened
    """What is being written was erased before, and a tombstone keeps it from coming back."""


class Backpressure(RuntimeError):  # noqa: N818
    """The sealer has fallen too far behind: its storage is away, and the log must not grow without bound."""


class _Prepared(NamedTuple):
    """An event, its redacted body as it will be returned, and that body's JSON."""

    event: NewEvent
    clean: dict[str, Any]
    body: str


@dataclass
class _Append:
    """One caller's events on their way into a shared transaction."""

    prepared: list[_Prepared]
    result: list[Event] | BaseException | None = None
    leads: bool = False
    wake: threading.Lock = field(default_factory=threading.Lock)  # held until then; cheaper than an Event

    def __post_init__(self) -> None:
        self.wake.acquire()


class EventLog(EventReader):
    """Appends and reads events; one object may be shared by threads, and many processes may open the same log."""

    def __init__(
        self,
        engine: Engine,
        *,
        vault: Vault | None = None,
        redactor: Redactor | None = None,
        max_backlog: int = MAX_BACKLOG,
    ) -> None:
        super().__init__(engine, vault or Vault(engine, FileKeyService(key_file(engine.url))))
        self.max_backlog = max_backlog
        self.redactor = redactor or Redactor()
        self._mutex = threading.Lock()
        self._waiting: list[_Append] = []
        self._writing = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Whatever this thread reads and appends inside is one transaction: many changes, one fsync at the end."""
        if getattr(self._here, "connection", None) is not None:
            yield
            return
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
            mine.wake.acquire()
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

    def append_each(self, appends: Sequence[Sequence[NewEvent]]) -> list[list[Event] | Exception]:
        """Many appends in one transaction, each as :meth:`append`; what the log refuses is an entry of the result."""
        with self.together():
            connection = self._here.connection
            prepared = [attempt(self._prepared, events) for events in appends]
            return with_the_sound(prepared, lambda sound: self._append_all(connection, sound) if sound else [])

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
            append.wake.release()

    def _prepared(self, events: Sequence[NewEvent]) -> list[_Prepared]:
        """Redacted and checked in the caller's own thread, so that one bad event fails nobody else's."""
        prepared = []
        for event in events:
            clean = self.redactor.body(event.body)
            body = body_text(clean)
            for name in _TEXTS:
                check_text(name, getattr(event, name))
            check_text("lesson_id", _lesson_id(event))
            check_text("body", body)
            prepared.append(_Prepared(event, clean, body))
        return prepared

    def _append_all(
        self, connection: Connection, appends: Sequence[Sequence[_Prepared]]
    ) -> list[list[Event] | Exception]:
        """One result per append, in order; each sees the ones before it."""
        seq, sealed = connection.execute(_HEAD).one()
        self._check_backlog(seq, sealed)
        everything = [prepared.event for append in appends for prepared in append]
        stored = self._known(connection, everything)
        erased = self._erased(connection, {group for group in map(_group, everything) if group} - stored.keys())
        writing: list[tuple[Event, str, int]] = []  # event, body, its place among the events of one feedback
        results: list[list[Event] | Exception] = []
        for append in appends:
            groups = {group for prepared in append if (group := _group(prepared.event))}
            if gone := groups & erased:
                results.append(ErasedFeedback(f"feedback_id = {min(gone)[1]!r:.80}: it was erased and stays erased"))
                continue
            results.append(self._numbered(append, stored, writing, seq))
        if writing:
            self._insert(connection, writing)
            connection.execute(_ADVANCE, {"head": seq + len(writing)})
        return results

    def _check_backlog(self, head: int, sealed: int | None) -> None:
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
            event = Event(**{**vars(prepared.event), "body": prepared.clean, "seq": seq + len(writing) + 1})
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
        tenants = sorted({tenant for tenant, _ in wanted})
        for names in chunks(sorted({name for _, name in wanted})):
            rows += connection.execute(_KNOWN, {"tenants": tenants, "names": names}).mappings()
        found: dict[_Group, list[Event]] = {}
        if not rows:
            return found
        for event in self.opened([row for row in rows if (row["tenant"], row["feedback_id"]) in wanted]):
            found.setdefault((event.tenant, event.feedback_id or ""), []).append(event)
        return found

    def _erased(self, connection: Connection, groups: set[_Group]) -> set[_Group]:
        prints = {self.feedback_print(*group): group for group in groups}
        found: set[_Group] = set()
        for names in chunks(sorted(prints)):
            found |= {prints[name] for name in connection.scalars(_ERASED, {"names": names})}
        return found

    def feedback_print(self, tenant: str, feedback_id: str) -> str:
        """What a tombstone holds of a feedback id."""
        return self.vault.service.fingerprint(json.dumps(["feedback", tenant, feedback_id]))

    def rotate_master_key(self) -> int:
        """Wrap all keys under a new master key and destroy the old ones; returns the number of keys.

        Under the counter's lock, so that no writer wraps a new key under a master key that is about to go, and no other
        rotation has wrapped keys under one that only its own transaction has seen.
        """
        with write_transaction(self.engine) as connection:
            connection.execute(LOCKED_HEAD)
            self.vault.service.rotate()
            count = self.vault.rewrap(connection)
        with write_transaction(self.engine) as connection:
            connection.execute(LOCKED_HEAD)
            self.vault.service.forget_old(self.vault.masters(connection))
        return count

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


def _group(event: NewEvent) -> _Group | None:
    return None if event.feedback_id is None else (event.tenant, event.feedback_id)


def _lesson_id(event: NewEvent) -> str | None:
    return event.body.get("lesson_id") if event.kind == "lesson" else None


def cited_lessons(event: NewEvent) -> list[str]:
    """The lessons that an answer cites, and those that an asker's correction is evidence for without naming them."""
    if event.kind == "answer":
        return [cited["lesson_id"] for cited in event.body.get("lessons") or ()]
    return list(evidence_for(event))


def body_text(body: dict[str, Any]) -> str:
    """The body as it is encrypted: JSON, in which a NUL of the user's text is only an escape."""
    return _JSON.encode(body)
