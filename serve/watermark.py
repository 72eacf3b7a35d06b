"""How far this replica has followed the event log."""

from __future__ import annotations

import asyncio


class NotYetFollowed(RuntimeError):  # noqa: N818 - reads as what happened
    """The replica has not reached the demanded place in the event log in time."""

    def __init__(self, demanded: int, reached: int) -> None:
        super().__init__(f"lesson_seq {demanded} is not here yet: this replica has followed the event log to {reached}")
        self.demanded, self.reached = demanded, reached


class Watermark:
    """A number that only rises, and that coroutines can wait for."""

    def __init__(self) -> None:
        self.value = 0
        self._risen = asyncio.Condition()

    async def advance(self, value: int) -> None:
        if value > self.value:
            async with self._risen:
                self.value = value
                self._risen.notify_all()

    async def reach(self, value: int, timeout_s: float) -> None:
        if self.value >= value:
            return
        try:
            async with asyncio.timeout(timeout_s), self._risen:
                await self._risen.wait_for(lambda: self.value >= value)
        except TimeoutError:
            raise NotYetFollowed(value, self.value) from None
