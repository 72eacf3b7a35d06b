"""Grouping of concurrent calls: what gathers while one group runs becomes the next group."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls ``run(items)`` on ``executor`` for groups of at most ``max_batch`` items.

    ``run`` returns one entry per item, in order; an entry that is an exception is raised to that item's caller alone.
    Items whose caller has gone away are dropped before the group starts. After a group of more than one, the next one
    waits ``gather_s`` for company: where much is said at once, that spares more work than it costs (PostgreSQL's
    ``commit_delay``), and who speaks alone never waits.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result | Exception]],
        executor: Executor,
        *,
        max_batch: int,
        gather_s: float = 0.0,
    ) -> None:
        self._run = run
        self._executor = executor
        self._max_batch = max_batch
        self._gather_s = gather_s
        self._crowded = False
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return await future

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        while not self._queue.empty():
            self._queue.get_nowait()[1].cancel()

    async def _work(self) -> None:
        while True:
            group = [pair for pair in await self._gather() if not pair[1].done()]
            if group:
                await self._serve(group)

    async def _gather(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        if self._crowded and self._gather_s:
            await asyncio.sleep(self._gather_s)  # before anything is taken: whoever closes finds it in the queue
        group = [await self._queue.get()]
        while len(group) < self._max_batch and not self._queue.empty():
            group.append(self._queue.get_nowait())
        self._crowded = len(group) > 1
        return group

    async def _serve(self, group: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        items = [item for item, _ in group]
        results: Sequence[Result | Exception]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, items)
        except asyncio.CancelledError:
            for _, future in group:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - the border between a group's work and its callers: each of them gets the error
            results = [error] * len(group)
        for (_, future), result in zip(group, results, strict=True):
            if future.done():  # its caller left while the group ran
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
