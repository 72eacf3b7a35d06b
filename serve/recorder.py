"""Writing to the event log from the event loop: answers in groups, everything through one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.feedback.events import EventLog
from pipeline.feedback.records import Event, NewEvent
from serve.batching import Batcher

Result = TypeVar("Result")


class Recorder:
    """Group commit: the answers that finish while one transaction is written share the next one.

    One thread writes, because SQLite has one writer; queueing here is cheaper than waiting for its lock.
    """

    def __init__(self, log: EventLog, *, max_group: int = 256) -> None:
        self._log = log
        self._thread = ThreadPoolExecutor(1, "event-log")
        self._answers = Batcher(self._append, self._thread, max_batch=max_group)

    async def record(self, event: NewEvent) -> Event:
        """Returns after the commit."""
        return await self._answers.submit(event)

    async def write(self, change: Callable[[], Result]) -> Result:
        """Run another write, such as one of :mod:`pipeline.feedback.intake`, in the writing thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, change)

    async def close(self) -> None:
        await self._answers.close()
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
