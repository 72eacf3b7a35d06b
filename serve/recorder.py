"""Writing to the event log from the event loop: in groups, through one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from pipeline.feedback.events import EventLog
from pipeline.feedback.records import Event, NewEvent
from serve.batching import Batcher

Result = TypeVar("Result")


class Recorder:
    """Group commit: what is said while one transaction is written shares the next one.

    One thread writes, because SQLite has one writer; queueing here is cheaper than waiting for its lock.
    """

    def __init__(self, log: EventLog, *, max_group: int = 256) -> None:
        self._log = log
        self._thread = ThreadPoolExecutor(1, "event-log")
        self._answers = Batcher(self._append, self._thread, max_batch=max_group)
        self._changes: Batcher[Callable[[], Any], Any] = Batcher(self._change, self._thread, max_batch=max_group)

    async def record(self, event: NewEvent) -> Event:
        """Returns after the commit."""
        return await self._answers.submit(event)

    async def write(self, change: Callable[[], Result]) -> Result:
        """Run another write, such as one of :mod:`pipeline.feedback.intake`, in the writing thread."""
        return cast(Result, await self._changes.submit(change))

    async def close(self) -> None:
        await asyncio.gather(self._answers.close(), self._changes.close())
        self._thread.shutdown(wait=True)

    def _append(self, events: list[NewEvent]) -> list[Event | Exception]:
        try:
            return [*self._log.append(events)]
        except ValueError:  # one event that the log refuses must not take its neighbours along
            return [self._append_alone(event) for event in events]

    def _append_alone(self, event: NewEvent) -> Event | Exception:
        try:
            return self._log.append([event])[0]
        except ValueError as error:
            return error

    def _change(self, changes: list[Callable[[], Any]]) -> list[Any]:
        with self._log.together():
            return [self._change_alone(change) for change in changes]

    def _change_alone(self, change: Callable[[], Any]) -> Any:
        """What a change refuses (before it writes anything) is its caller's alone."""
        try:
            return change()
        except (ValueError, LookupError, PermissionError) as error:
            return error
