"""A request's body goes to the replica together with its head.

Ray Serve's proxy sends the head alone, and the replica calls back for the body: as much time again as the way there.
:class:`Sender` runs in the proxy, which finds it through ``CALLBACK`` and imports nothing else of this project;
:class:`Receiver` runs in the replica, and keeps it from calling back for nothing.
"""

from __future__ import annotations

import asyncio

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OURS = "/v1/"  # the paths of the API
CALLBACK = "serve.body_ahead:middlewares"
BODY = "agm.body"  # in the request's scope, which no client can write to
WITH_BODY = ("POST", "PATCH")
_CALL_BACK = "_receive_asgi_messages"  # of Ray Serve's own receive, which asks the proxy for what comes in
PATIENCE_S = 0.05  # a body that has not come by then is fetched as any other


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy is told to put around itself."""
    return [Middleware(Sender)]


class Sender:
    """Puts a body that comes in one piece into the scope, and leaves it where another application would ask for it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in WITH_BODY or not scope["path"].startswith(OURS):
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                first = await receive()
        except TimeoutError:
            await self.app(scope, receive, send)
            return
        whole = first["type"] == "http.request" and not first.get("more_body", False)
        told = {**scope, BODY: first.get("body", b"")} if whole else scope
        await self.app(told, after(first, receive), send)


class Receiver:
    """Hands out the body that came with the head, and then only what is not the body again."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if BODY in scope:
            _call_nobody_back(receive)
            whole = {"type": "http.request", "body": scope[BODY], "more_body": False}
            await self.app(scope, after(whole, _the_rest(receive)), send)
        else:
            await self.app(scope, receive, send)


def _call_nobody_back(receive: Receive) -> None:
    """Before Ray Serve's task asks for a body that is here already: it starts when the application first waits.

    What else the task would bring is that the client has gone, and for that the proxy cancels the request by itself.
    A Serve whose receive has no such attribute goes on asking, which costs time and nothing else.
    """
    if hasattr(receive, _CALL_BACK):
        setattr(receive, _CALL_BACK, _nothing_comes)


async def _nothing_comes(_request: object) -> bytes:
    await asyncio.Event().wait()
    return b""


def _the_rest(receive: Receive) -> Receive:
    async def next_message() -> Message:
        while (message := await receive())["type"] == "http.request":
            pass
        return message

    return next_message


def after(first: Message, receive: Receive) -> Receive:
    """Gives ``first``, then what ``receive`` gives."""
    waiting = [first]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
