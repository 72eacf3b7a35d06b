"""Writing to the event log from the event loop: in groups, through one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from pipeline.feedback.curation import Curator
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import Receipt, Said, record_feedbacks
from pipeline.feedback.records import Event, NewEvent, attempt
from pipeline.feedback.vault import KeyUnavailable
from serve.batching import Batcher

Result = TypeVar("Result")

GATHER_S = 0.02  # for feedback: a transaction costs about as much as ten of the feedbacks in it


class Recorder:
    """Group commit: what is said while one transaction is written shares the next one.

    One thread writes, because SQLite has one writer; queueing here is cheaper than waiting for its lock.
    """

    def __init__(self, log: EventLog, curator: Curator, *, max_group: int = 256) -> None:
        self._log = log
        self._curator = curator
        self._thread = ThreadPoolExecutor(1, "event-log")
        self._answers = Batcher(self._append, self._thread, max_batch=max_group)
        self._feedback = Batcher(self._hear, self._thread, max_batch=max_group, gather_s=GATHER_S)
        self._changes: Batcher[Callable[[], Any], Any] = Batcher(self._change, self._thread, max_batch=max_group)

    async def record(self, event: NewEvent) -> Event:
        """Returns after the commit."""
        return await self._answers.submit(event)

    async def hear(self, said: Said) -> Receipt:
        """Returns after the commit."""
        return await self._feedback.submit(said)

    async def write(self, change: Callable[[], Result]) -> Result:
        """Run another write, such as one of :mod:`pipeline.feedback.intake`, in the writing thread."""
        return cast(Result, await self._changes.submit(change))

    async def close(self) -> None:
        await asyncio.gather(self._answers.close(), self._feedback.close(), self._changes.close())
        self._thread.shutdown(wait=True)

    def _append(self, events: list[NewEvent]) -> list[Event | Exception]:
        appended = self._log.append_each([[event] for event in events])
        return [stored if isinstance(stored, Exception) else stored[0] for stored in appended]

    def _hear(self, said: list[Said]) -> list[Receipt | Exception]:
        try:
            return record_feedbacks(self._log, said, self._curator)
        except KeyUnavailable:  # of an answer that cannot be read any more: whoever speaks about another is heard
            return [self._hear_alone(one) for one in said]

    def _hear_alone(self, said: Said) -> Receipt | Exception:
        heard = readable(lambda: record_feedbacks(self._log, [said], self._curator))
        return heard if isinstance(heard, Exception) else heard[0]

    def _change(self, changes: list[Callable[[], Any]]) -> list[Any]:
        with self._log.together():
            return [readable(change) for change in changes]  # each refuses before it writes anything


def readable(work: Callable[[], Result]) -> Result | Exception:
    """As :func:`attempt`, and the error too where an event that ``work`` rests on cannot be read any more."""
    try:
        return attempt(work)
    except KeyUnavailable as error:
        return error
