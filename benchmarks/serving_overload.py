"""Ten times the load that the endpoint can take, for a minute: only 200 and 429, bounded memory, and it recovers.

python benchmarks/serving_overload.py --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from typing import Any

import httpx
import psutil
from serving_common import TOPICS, Place, bars, keep, percentiles, serving

from benchmarks.record import circumstances

CHATS = 16


async def ask(client: httpx.AsyncClient, number: int) -> tuple[int, float]:
    question = f"Tell me about {TOPICS[number % len(TOPICS)]} and number {number}."
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 8, "strategy": "weights"}
    began = time.perf_counter()
    try:
        status = (await client.post("/v1/chat/completions", json=body)).status_code
    except httpx.TransportError as error:
        print(type(error).__name__, error)
        status = 0
    return status, (time.perf_counter() - began) * 1000


async def capacity(client: httpx.AsyncClient, seconds: float = 10.0) -> float:
    """Requests a second with ``CHATS`` askers who wait for their answers."""
    until, done = time.perf_counter() + seconds, 0

    async def asker(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await ask(client, number)
            done += 1

    await asyncio.gather(*map(asker, range(CHATS)))
    return done / seconds


async def flood(client: httpx.AsyncClient, rate: float, seconds: float) -> list[tuple[int, float]]:
    """An open loop: requests leave on time, whatever has come back."""
    began, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(client, number)))
    return await asyncio.gather(*tasks)


def replica_memory() -> float:
    """GiB of the largest replica."""
    sizes = [
        p.memory_info().rss for p in psutil.Process().children(recursive=True) if "Answerer" in " ".join(p.cmdline())
    ]
    return max(sizes, default=0) / 2**30


async def measure(place: Place, seconds: float) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    headers = {"authorization": f"Bearer {place.keys['ask']}"}
    async with httpx.AsyncClient(base_url=place.url, headers=headers, timeout=120, limits=limits) as client:
        able = await capacity(client)
        before = replica_memory()
        replies = await flood(client, 10 * able, seconds)
        after = replica_memory()
        recovered = [await ask(client, number) for number in range(20)]
    accepted = [taken for status, taken in replies if status == 200]
    return {
        "capacity_per_s": able,
        "offered_per_s": 10 * able,
        "statuses": dict(Counter(status for status, _ in replies)),
        "accepted_ms": percentiles(accepted),
        "replica_gib": {"before": before, "after": after},
        "after_the_flood": {
            "statuses": dict(Counter(s for s, _ in recovered)),
            "ms": percentiles([t for _, t in recovered]),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"circumstances": circumstances(), "seconds": arguments.seconds}
    with serving(None, {"serve.weights": "int8"}) as place:
        result |= asyncio.run(measure(place, arguments.seconds))
    print(result)
    shown = {f"HTTP {status}": float(count) for status, count in result["statuses"].items()}
    print(keep("serving_overload", result), bars("serving_overload", "Replies at ten times the load", "replies", shown))


if __name__ == "__main__":
    main()
