"""Latencies through HTTP: a copied answer among 1,000 lessons, what HTTP and Serve add, a correction's way, replicas.

python benchmarks/serving_latency.py
python benchmarks/serving_latency.py --replicas 3 --lessons 100      # the correction is right on every replica
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import httpx
from serving_common import EMPTY, Place, bars, keep, percentiles, serve_nothing, serving

from benchmarks.record import circumstances
from pipeline.data.lines import LessonLine
from serve.client import Client, Reply

ASKED = 200


def spent_ms(reply: Reply) -> float:
    """What the reply's ``Server-Timing`` header says that the answer and its record took."""
    return sum(float(part.partition(";dur=")[2]) for part in reply.timing.split(","))


def nothing(place: Place) -> dict[str, float]:
    """An endpoint that does nothing, behind the same proxy, asked with the body of a question."""
    question = {"messages": [{"role": "user", "content": "Which code opens locker number 7?"}]}
    taken = []
    with httpx.Client(base_url=place.url) as client:
        for _ in range(ASKED):
            began = time.perf_counter()
            client.post(f"{EMPTY}/", json=question).raise_for_status()
            taken.append((time.perf_counter() - began) * 1000)
    return percentiles(taken)


def copies(client: Client, lessons: int) -> dict[str, Any]:
    for n in range(lessons):
        client.teach(LessonLine(question=f"Which code opens locker number {n}?", answer=f"code {n * 7919 % 10_000}"))
    replies = [client.ask(f"Which code opens locker number {n * 37 % lessons}?") for n in range(ASKED)]
    right = sum(reply.text == f"code {n * 37 % lessons * 7919 % 10_000}" for n, reply in enumerate(replies))
    return {
        "lessons": lessons,
        "right": right,
        "copied": sum(reply.strategy == "copy" for reply in replies),
        "copy_ms": percentiles([reply.milliseconds for reply in replies]),
        "http_and_serve_ms": percentiles([reply.milliseconds - spent_ms(reply) for reply in replies]),
    }


def corrections(client: Client, replicas: int) -> dict[str, Any]:
    """From posting a correction to having read the corrected answer, on as many answers as replicas answer them."""
    taken, right = [], 0
    for n in range(ASKED // 2):
        question = f"Who keeps the key of tower {n}?"
        first = client.ask(question, strategy="weights")
        began = time.perf_counter()
        receipt = client.correct(first.response_id, f"Keeper {n}")
        answer = client.ask(question, min_lesson_seq=receipt["lesson_seq"])
        taken.append((time.perf_counter() - began) * 1000)
        others = [client.ask(question, min_lesson_seq=receipt["lesson_seq"]) for _ in range(2 * (replicas - 1))]
        right += all(reply.text == f"Keeper {n}" for reply in (answer, *others))
    return {"correction_ms": percentiles(taken), "right_everywhere": right, "replicas": replicas}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lessons", type=int, default=1_000)
    parser.add_argument("--replicas", type=int, default=1)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"circumstances": circumstances()}
    changes = {"serve.replicas": arguments.replicas, "serve.cpus_per_replica": 0.5}
    with serving(None, changes) as place, Client(place.url, place.keys["teach"]) as client:
        result |= corrections(client, arguments.replicas) | copies(client, arguments.lessons)
        serve_nothing(EMPTY)
        result["empty_ms"] = nothing(place)
    print(result)
    shown = {
        f"{name}, {cut}": result[name][cut]
        for name in ("copy_ms", "http_and_serve_ms", "empty_ms", "correction_ms")
        for cut in ("p50", "p95")
    }
    name = "serving_latency" if arguments.replicas == 1 else f"serving_latency_{arguments.replicas}_replicas"
    print(keep(name, result), bars(name, "Latency through HTTP", "ms", shown))


if __name__ == "__main__":
    main()
