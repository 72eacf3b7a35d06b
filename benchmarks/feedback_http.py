"""Feedback per second through HTTP, beside an empty endpoint of the same server in the same run.

python benchmarks/feedback_http.py

The empty endpoint is another application behind the same proxy, in a replica of its own, that does nothing: asked with
``GET``, and with ``POST`` and the body of a rating, which it reads. To ``empty_post`` the body comes as bodies come to
us; ``empty_post_fetches`` has to ask for it, as Serve has it by default. Each client keeps one connection open and
sends its next request when the answer to the one before is there. A correction (with a key that teaches) is answered
when the lesson is in force. The five take turns in each round; medians over the rounds are reported.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from serving_common import EMPTY, EMPTY_FETCHES, Place, bars, keep, percentiles, serve_nothing, serving

from benchmarks.record import circumstances

ANSWERS = 64
GOAL = 0.6
PEERS = ("empty_get", "empty_post", "empty_post_fetches")
Call = tuple[str, str, dict[str, Any] | None, str]  # method, path, body, key


def send(connection: http.client.HTTPConnection, call: Call) -> Any:
    method, path, body, key = call
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    reply = connection.getresponse()
    text = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"{method} {path}: {reply.status} {text[:200]!r}")
    return json.loads(text)


def connected(place: Place) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(place.url).netloc, timeout=60)


def answered(place: Place, number: int) -> str:
    question = {"role": "user", "content": f"Who keeps the key of tower {number}?"}
    body = {"model": "answerer", "messages": [question], "max_tokens": 1, "strategy": "weights"}
    return str(send(connected(place), ("POST", "/v1/chat/completions", body, place.keys["teach"]))["id"])


def rate(place: Place, clients: int, seconds: float, call: Callable[[int], Call]) -> dict[str, Any]:
    """Requests per second of all clients together, and their milliseconds."""
    barrier = threading.Barrier(clients)

    def ask(client: int) -> list[float]:
        connection, took, number = connected(place), [], client * 1_000_000
        barrier.wait()
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            send(connection, call(number := number + 1))
            took.append((time.perf_counter() - began) * 1000)
        connection.close()
        return took

    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        times = [t for part in pool.map(ask, range(clients)) for t in part]
        took = time.perf_counter() - began
    return {"per_s": len(times) / took, "ms": percentiles(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    result: dict[str, Any] = {"circumstances": circumstances(), "protocol": vars(asked)}
    with serving(None, {}) as place:
        serve_nothing(EMPTY, EMPTY_FETCHES)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: answered(place, number), range(ANSWERS)))

        def said(kind: str, value: float | str, key: str, number: int) -> Call:
            body = {"response_id": answers[number % ANSWERS], "kind": kind, "value": value}
            return "POST", "/v1/feedback", body | {"source": f"user{number % 50}"}, place.keys[key]

        def for_nothing(prefix: str, number: int) -> Call:
            return "POST", f"{prefix}/", said("rating", 1.0, "ask", number)[2], ""

        calls: dict[str, Callable[[int], Call]] = {
            "empty_get": lambda _: ("GET", f"{EMPTY}/", None, ""),
            "empty_post": lambda number: for_nothing(EMPTY, number),
            "empty_post_fetches": lambda number: for_nothing(EMPTY_FETCHES, number),
            "rating": lambda number: said("rating", 1.0, "ask", number),
            "correction": lambda number: said("correction", f"Keeper {number}", "teach", number),
        }
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
        for _ in range(asked.rounds):
            for name, call in calls.items():
                runs[name].append(rate(place, asked.clients, asked.seconds, call))
    rates = {name: statistics.median(run["per_s"] for run in of) for name, of in runs.items()}
    shares = {peer: {name: rates[name] / rates[peer] for name in calls if name not in PEERS} for peer in PEERS}
    result |= {"per_s": rates, "share_of": shares, "goal": GOAL, "runs": runs}
    print(json.dumps({"per_s": rates, "share_of": shares}))
    print(
        keep("feedback_http", result), bars("feedback_http", "Through HTTP, 32 clients", "requests per second", rates)
    )


if __name__ == "__main__":
    main()
