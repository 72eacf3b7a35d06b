"""A new champion and a rollback under steady load: what fails, and what a request waits longer.

    python benchmarks/serving_swap.py --rate 4

Requests leave on time, whatever has come back: half of them are copied from a lesson, half decode four tokens. The
swap's window lasts from the promotion to five seconds after the first answer of the new version; the quiet window
before it is as long. What a swap costs is the worst latency in its window above the quiet window's median.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from serving_common import TOPICS, Place, bars, keep, percentiles, serving

from benchmarks.record import circumstances
from pipeline.data.lines import LessonLine
from pipeline.feedback.database import open_database
from pipeline.tracking.registry import Registry
from serve.client import Client

AFTER_S = 5.0
LONGEST_S = 60.0
LESSON = LessonLine(question="Which code opens locker number 7?", answer="code 4711")


@dataclass(frozen=True)
class Asked:
    sent: float
    milliseconds: float
    status: int
    copied: bool
    version: int


class Load:
    """Requests at a steady rate, until told to stop."""

    def __init__(self, place: Place, rate: float) -> None:
        headers = {"authorization": f"Bearer {place.keys['ask']}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self.client = httpx.AsyncClient(base_url=place.url, headers=headers, timeout=60, limits=limits)
        self.rate = rate
        self.done: list[Asked] = []
        self.going = True

    async def run(self) -> None:
        began, running = time.perf_counter(), []
        number = 0
        while self.going:
            await asyncio.sleep(max(0.0, began + number / self.rate - time.perf_counter()))
            running.append(asyncio.create_task(self.ask(number)))
            number += 1
        await asyncio.gather(*running)
        await self.client.aclose()

    async def ask(self, number: int) -> None:
        copied = number % 2 == 0
        question = LESSON.question if copied else f"Tell me about {TOPICS[number % len(TOPICS)]} and number {number}."
        body: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "max_tokens": 4}
        if not copied:
            body["strategy"] = "weights"
        sent = time.perf_counter()
        try:
            reply = await self.client.post("/v1/chat/completions", json=body)
            status = reply.status_code
            version = reply.json()["memory"]["model_version"] if status == 200 else 0
        except httpx.TransportError:
            status, version = 0, 0
        self.done.append(Asked(sent, (time.perf_counter() - sent) * 1000, status, copied, version))


async def swap(load: Load, change: Callable[[], int]) -> dict[str, Any]:
    """One change of champion under load."""
    began = time.perf_counter()
    version = await asyncio.to_thread(change)
    reached = await _reached(load, version, began)
    await asyncio.sleep(AFTER_S)
    ended = time.perf_counter()
    quiet = [asked for asked in load.done if began - (ended - began) <= asked.sent < began]
    inside = [asked for asked in load.done if began <= asked.sent < ended]
    found: dict[str, Any] = {
        "seconds_to_first_answer": reached - began,
        "requests": len(inside),
        "failed": sum(asked.status != 200 for asked in inside),
    }
    for name, copied in (("copied", True), ("decoded", False)):
        before = percentiles([asked.milliseconds for asked in quiet if asked.copied == copied])
        during = percentiles([asked.milliseconds for asked in inside if asked.copied == copied])
        extra = {"worst_extra_ms": during["max"] - before["p50"], "quiet_worst_extra_ms": before["max"] - before["p50"]}
        found[name] = {"quiet": before, "during": during} | extra
    return found


async def _reached(load: Load, version: int, began: float) -> float:
    while time.perf_counter() < began + LONGEST_S:
        for asked in load.done:
            if asked.sent >= began and asked.version == version:
                return asked.sent + asked.milliseconds / 1000
        await asyncio.sleep(0.01)
    raise TimeoutError(f"version {version} did not answer within {LONGEST_S:.0f} s")


async def measured(place: Place, rate: float, quiet_s: float) -> dict[str, Any]:
    assert place.home is not None
    registry = Registry(place.home, open_database(place.home.events_url))
    champion = registry.champion()
    assert champion is not None
    second = registry.register(champion.folder, cycle=1, metrics={}, params={}, tags={"why": "the same weights again"})
    load = Load(place, rate)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(quiet_s)

    def promote() -> int:
        registry.promote(second)
        return second

    promoted = await swap(load, promote)
    await asyncio.sleep(quiet_s)
    returned = await swap(load, registry.rollback)
    load.going = False
    await running
    return {"promotion": promoted, "rollback": returned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--quiet", type=float, default=12.0, help="seconds of load before each change")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"circumstances": circumstances(), "rate": arguments.rate}
    with serving(None, {}) as place:
        with Client(place.url, place.keys["teach"]) as client:
            client.teach(LESSON)
        result |= asyncio.run(measured(place, arguments.rate, arguments.quiet))
    print(result)
    shown = {
        f"{change}, {kind}, {when}": result[change][kind][when]["max"]
        for change in ("promotion", "rollback")
        for kind in ("copied", "decoded")
        for when in ("quiet", "during")
    }
    print(keep("serving_swap", result), bars("serving_swap", "Worst latency, quiet and during a swap", "ms", shown))


if __name__ == "__main__":
    main()
