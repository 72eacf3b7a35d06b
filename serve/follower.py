"""Staying in step: the replica tails the event log into its lesson memory, and takes every new champion."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pipeline.feedback.events import EventLog
from pipeline.feedback.records import Event, EventKind
from pipeline.feedback.vectors import apply_kept
from pipeline.memory.store import LessonMemory
from serve.canary import Canary
from serve.decode_loop import Served
from serve.engine import BatchEngine
from serve.metrics import Meters
from serve.threads import use_threads

log = logging.getLogger("serve.follower")

RETRY_REFUSED_S = 30.0
PAGE = 1_000  # events at a time: what an interrupted start has encoded is not lost
FOLLOWED: tuple[EventKind, ...] = ("lesson", "feedback")


class LessonFollower:
    """Applies lesson events to the memory and ratings to the policy, in ``seq`` order.

    ``engine.followed`` says how far.
    """

    def __init__(self, events: EventLog, memory: LessonMemory, engine: BatchEngine, poll_s: float) -> None:
        self._events = events
        self._memory = memory
        self._engine = engine
        self._poll_s = poll_s
        self._nudged = asyncio.Event()

    async def catch_up(self) -> int:
        """Apply everything that the log holds now; returns how far the replica is."""
        behind = True
        while behind:
            seq, found = await asyncio.to_thread(self._page, self._engine.followed.value)
            if found:
                self._engine.policy.apply(found)
                apply = partial(apply_kept, self._events, self._memory, found)
                await asyncio.get_running_loop().run_in_executor(self._engine.memory_thread, apply)
            await self._engine.followed.advance(seq)
            behind = len(found) == PAGE
        return self._engine.followed.value

    def _page(self, after: int) -> tuple[int, list[Event]]:
        """Blocking: the next events, and how far the log has been read with them."""
        head = self._events.head()
        found = self._events.after(after, kinds=FOLLOWED, limit=PAGE, through=head) if head > after else []
        return (found[-1].seq if len(found) == PAGE else head), found

    async def reach(self, seq: int, timeout_s: float) -> None:
        """Return once ``seq`` is applied here; does not wait for the next poll."""
        self._nudged.set()
        await self._engine.followed.reach(seq, timeout_s)

    async def step(self) -> None:
        self._nudged.clear()
        await self.catch_up()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nudged.wait(), self._poll_s)


class ChampionFollower:
    """Loads a new champion beside the old one, checks it, and swaps one reference; a canary likewise.

    ``current`` gives (promotion id, version) cheaply; ``load`` builds and checks a version, or raises.
    """

    def __init__(
        self,
        current: Callable[[], tuple[int, int] | None],
        load: Callable[[int, Served], Served],
        engine: BatchEngine,
        meters: Meters,
        poll_s: float,
        canary: Callable[[], Canary | None] = lambda: None,
    ) -> None:
        self._current = current
        self._load = load
        self._engine = engine
        self._meters = meters
        self._poll_s = poll_s
        self._canary = canary
        self._thread = ThreadPoolExecutor(1, "bundle-loader", use_threads, (1,))
        self._refused: dict[object, float] = {}  # promotion id or canary -> when it may be tried again
        self.last_refusal: str | None = None

    async def step(self) -> None:
        await self.check()
        await self.check_canary()
        await asyncio.sleep(self._poll_s)

    async def check(self) -> None:
        current = await asyncio.to_thread(self._current)
        if current is None or current[1] == self._engine.served.version:
            return
        promotion, version = current
        running = self._engine.canary
        if running is not None and running[1].version == version:  # it has been tried already: it only moves up
            new: Served | None = running[1]
        else:
            new = await self._loaded(promotion, version)
        if new is not None:
            log.warning("champion %d answers now, %d did before", version, self._engine.served.version)
            self._engine.swap(new)
            self.last_refusal = None
            self._meters.swaps.inc()

    async def check_canary(self) -> None:
        wish = await asyncio.to_thread(self._canary)
        running = self._engine.canary
        if wish is None or wish.version == self._engine.served.version:
            self._engine.canary = None
        elif running is not None and running[1].version == wish.version:
            self._engine.canary = (wish, running[1])
        elif (served := await self._loaded(wish, wish.version)) is not None:
            self._engine.canary = (wish, served)

    async def _loaded(self, reason: object, version: int) -> Served | None:
        """The version beside the one that answers, or ``None`` while a refusal is fresh."""
        if self._refused.get(reason, 0.0) > time.monotonic():
            return None
        old = self._engine.served
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._load, version, old)
        except Exception as error:  # the border of loading: whatever a bundle does wrong, the old one keeps answering
            self._refused[reason] = time.monotonic() + RETRY_REFUSED_S
            self.last_refusal = f"version {version}: {type(error).__name__}: {error}"
            self._meters.refused_bundles.inc()
            log.exception("version %d failed its check; version %d keeps answering", version, old.version)
            return None

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


async def forever(step: Callable[[], Awaitable[None]], name: str, meters: Meters, pause_s: float = 1.0) -> None:
    """Repeat ``step``; a failure is logged, counted and tried again, because a replica that stops following lies."""
    while True:
        try:
            await step()
        except Exception:  # the border of the background: the database may be away for a while
            meters.background_failures.inc()
            log.exception("%s failed; again in %.0f s", name, pause_s)
            await asyncio.sleep(pause_s)
