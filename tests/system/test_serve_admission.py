"""What the API refuses before Ray Serve would: a full replica, and a request that takes too long."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from starlette.types import Receive, Scope, Send

from serve.admission import TimeLimit
from tests.system.local_endpoint import Local, endpoint

ASK: dict[str, Any] = {
    "model": "answerer",
    "messages": [{"role": "user", "content": "Who wrote the longest of all these questions here?"}],
}
AT_ONCE = 24


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Room for three requests, of which one waits."""
    path = tmp_path_factory.mktemp("small")
    with endpoint(path, max_ongoing_requests=2, max_queued_requests=1, max_batch=2, request_timeout_s=2.0) as local:
        yield local


async def _flood(place: Local) -> tuple[list[httpx.Response], list[httpx.Response]]:
    """Chats that all arrive together, and the operators' requests meanwhile."""
    headers = {"authorization": f"Bearer {place.keys['asker']}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=place.url, headers=headers, timeout=60, limits=limits) as client:
        chats = [asyncio.create_task(client.post("/v1/chat/completions", json=ASK)) for _ in range(AT_ONCE)]
        beside = [await client.get(path) for path in ("/healthz", "/metrics", "/")]
        return await asyncio.gather(*chats), beside


def test_a_full_endpoint_says_so_in_openais_form_and_recovers(small: Local) -> None:
    chats, beside = asyncio.run(_flood(small))
    assert Counter(reply.status_code for reply in chats).keys() == {200, 429}
    refused = next(reply for reply in chats if reply.status_code == 429)
    assert refused.json()["error"].keys() == {"message", "type", "param", "code"}
    assert (refused.json()["error"]["code"], refused.json()["error"]["type"]) == ("overloaded", "rate_limit_error")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-request-id"]
    assert [reply.status_code for reply in beside] == [200, 200, 200]
    again, _ = asyncio.run(_flood(small))
    assert 200 in {reply.status_code for reply in again}


def test_openais_own_client_waits_and_is_answered(small: Local) -> None:
    async def ask_together() -> list[str]:
        key = small.keys["asker"]
        async with openai.AsyncOpenAI(base_url=small.url + "/v1", api_key=key, max_retries=10) as client:
            asked = [client.chat.completions.create(**ASK) for _ in range(8)]
            return [reply.choices[0].message.content or "" for reply in await asyncio.gather(*asked)]

    assert len(set(asyncio.run(ask_together()))) == 1


def test_a_request_that_does_not_end_in_time_is_refused_in_openais_form(small: Local) -> None:
    """Its body never comes: nothing behind the API could have ended it."""
    place = urlsplit(small.url)
    head = f"POST /v1/feedback HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {small.keys['asker']}\r\n"
    began = time.monotonic()
    with socket.create_connection((place.hostname, place.port), timeout=20) as waiting:
        waiting.sendall((head + "content-type: application/json\r\ncontent-length: 100\r\n\r\n{").encode())
        told = waiting.recv(65536).decode()
    assert told.startswith("HTTP/1.1 408")
    assert '"code":"deadline_exceeded"' in told
    assert 2 < time.monotonic() - began < 10


def test_what_has_begun_to_answer_is_not_cut() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.2)
        await send({"type": "http.response.body", "body": b"whole"})

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(TimeLimit(slow, seconds=0.1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/v1/models")

    assert asyncio.run(ask()).text == "whole"
