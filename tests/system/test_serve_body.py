"""A request's body that travels with its head: what the replica reads is what the client sent, however it was sent."""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx
import pytest
import uvicorn
from ray.serve._private.common import RequestMetadata
from ray.serve._private.http_util import ASGIReceiveProxy
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve.body_ahead import BODY, PATIENCE_S, Receiver, Sender

LARGE = b"x" * 300_000


@dataclass
class Way:
    """From a server's proxy to a replica that answers with the body, counting what the replica has to fetch."""

    url: str = ""
    fetched: int = 0
    left: threading.Event = field(default_factory=threading.Event)

    async def between(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def fetch() -> Message:
            self.fetched += 1
            return await receive()

        theirs = scope["path"].endswith("/theirs")  # of an application that knows nothing of all this
        await (self.replica if theirs else Receiver(self.replica))(scope, fetch, send)

    async def replica(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/wait"):
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()
            return
        await Response(await Request(scope, receive).body())(scope, receive, send)


@pytest.fixture(scope="module")
def server() -> Iterator[Way]:
    way = Way()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        way.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(Sender(way.between), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield way
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def way(server: Way) -> Way:
    server.fetched = 0
    return server


@pytest.mark.parametrize("body", [b'{"question": "Who?"}', b""])
def test_nothing_is_fetched_for_a_short_body(way: Way, body: bytes) -> None:
    assert httpx.post(f"{way.url}/v1/feedback", content=body).content == body
    assert way.fetched == 0


@pytest.mark.parametrize("path", ["/v1/feedback", "/elsewhere"])
def test_a_long_body_is_whole(way: Way, path: str) -> None:
    assert httpx.post(way.url + path, content=LARGE).content == LARGE
    assert way.fetched > 0


@pytest.mark.parametrize("path", ["/elsewhere", "/v1/theirs"])
def test_another_application_gets_its_body_as_ever(way: Way, path: str) -> None:
    assert httpx.post(way.url + path, content=b"theirs").content == b"theirs"
    assert way.fetched > 0


@pytest.mark.parametrize("pause_s", [0.0, 3 * PATIENCE_S])
def test_a_body_in_pieces_is_whole(way: Way, pause_s: float) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one", b"two", b"three"):
            await asyncio.sleep(pause_s)
            yield piece

    async def post() -> bytes:
        async with httpx.AsyncClient() as client:
            return (await client.post(f"{way.url}/v1/feedback", content=pieces())).content

    assert asyncio.run(post()) == b"onetwothree"


async def called_back(scope: Scope) -> int:
    """How often Ray Serve's own receive asks the proxy for a body while the application waits for something else."""
    asked = 0

    async def proxy(_request: object) -> bytes:
        nonlocal asked
        asked += 1
        return pickle.dumps(
            [{"type": "http.request", "body": b"late", "more_body": False}, {"type": "http.disconnect"}]
        )

    async def application(scope: Scope, receive: Receive, _send: Send) -> None:
        assert await Request(scope, receive).body() == (scope.get(BODY) or b"late")
        await asyncio.sleep(0.05)

    async def send(_message: Message) -> None: ...

    receive = ASGIReceiveProxy(scope, RequestMetadata(request_id="1", internal_request_id="1"), proxy)
    fetching = asyncio.create_task(receive.fetch_until_disconnect())  # as Serve begins every request
    await Receiver(application)(scope, receive, send)
    fetching.cancel()
    return asked


def test_serve_does_not_call_back_for_a_body_that_is_here() -> None:
    head = {"type": "http", "method": "POST", "path": "/v1/feedback", "headers": []}
    assert asyncio.run(called_back(head | {BODY: b"body"})) == 0
    assert asyncio.run(called_back(head)) == 1


def test_a_client_that_leaves_is_noticed(way: Way) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{way.url}/v1/wait", content=b"body", timeout=0.3)
    assert way.left.wait(10)


def test_a_header_is_no_body(way: Way) -> None:
    assert httpx.post(f"{way.url}/v1/feedback", content=b"mine", headers={BODY: "forged"}).content == b"mine"


def test_the_proxy_loads_no_model_library() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, serve.body_ahead as ahead; ahead.middlewares(); print('torch' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
