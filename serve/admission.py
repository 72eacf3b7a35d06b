"""What the API refuses itself, so that Ray Serve need not: Serve's proxy refuses in plain text, without a ``code``.

A replica takes requests until ``serve.max_ongoing_requests`` run and its share of ``serve.max_queued_requests`` wait,
and refuses the next one at once; Serve's own limits lie above, for the moment that a refusal takes. Time runs out
first in the engine, then here, then at the proxy.
"""

from __future__ import annotations

import asyncio
import math

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.config import ServeSettings
from serve.body_ahead import OURS
from serve.errors import error_response

REFUSED_AT_ONCE = 64  # requests that a replica holds beside the admitted: those that it refuses, and the operators'
QUEUED_AT_PROXY = 1024  # requests on their way to a replica that refuses faster than they come
API_GRACE_S = 1.0  # over serve.request_timeout_s, when the engine ends an answer


def admitted(settings: ServeSettings) -> int:
    """Requests that one replica runs or lets wait."""
    return settings.max_ongoing_requests + math.ceil(settings.max_queued_requests / settings.most_replicas)


class Room:
    """429 with ``Retry-After`` while ``most`` requests are under way, before the body is read."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self._most = most
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _limited(scope):
            await self.app(scope, receive, send)
            return
        if self._now >= self._most:
            message = (
                f"{self._now} requests run or wait, which is all that serve.max_ongoing_requests and "
                "serve.max_queued_requests let in: ask again after Retry-After seconds"
            )
            await error_response(429, message, "overloaded")(scope, receive, send)
            return
        self._now += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._now -= 1


class TimeLimit:
    """408 for a request that has no reply after ``seconds``; what has begun to answer ends at the engine's deadline."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _limited(scope):
            await self.app(scope, receive, send)
            return

        async def begun(message: Message) -> None:
            limit.reschedule(None)
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self.app(scope, receive, begun)
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"no reply within {self._seconds:g} s: retry, ask for less, or raise serve.request_timeout_s"
            await error_response(408, message, "deadline_exceeded")(scope, receive, send)


def _limited(scope: Scope) -> bool:
    """Health, metrics and the page answer under any load."""
    return scope["type"] == "http" and scope["path"].startswith(OURS)
