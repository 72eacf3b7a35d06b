"""What the serving benchmarks share: a running endpoint, percentiles, and where results go."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from ray import serve as ray_serve

from jobs import credentials, local
from jobs.initialise import initialise
from pipeline.config import load_recipe
from pipeline.home import Home
from serve.body_ahead import OURS, Receiver

RESULTS = Path(__file__).parent / "results"
TOPICS = (
    "the sea", "a lighthouse", "old maps", "winter", "a train", "bread", "the moon", "a clockmaker",
    "rivers", "glass", "a market", "birds", "iron", "gardens", "a violin", "snow",
)  # fmt: skip
EMPTY = f"{OURS}empty"  # where the proxy sends bodies with their heads, as it does to us
EMPTY_FETCHES = "/empty"  # where it does not: the replica asks for each body, as Serve has it by default

empty = FastAPI()
empty.add_middleware(Receiver)


@empty.get("/")
async def nothing() -> dict[str, str]:
    return {"status": "ok"}


@empty.post("/")
async def nothing_with_a_body(request: Request) -> dict[str, str]:
    await request.body()
    return {"status": "ok"}


@ray_serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
@ray_serve.ingress(empty)
class Empty:
    """What HTTP and Serve cost alone: a request is read and nothing is done."""


def serve_nothing(*prefixes: str) -> None:
    """The peers, behind the same proxy, each in a replica of its own."""
    for prefix in prefixes:
        ray_serve.run(Empty.bind(), name=prefix.strip("/").replace("/", "-"), route_prefix=prefix)


@dataclass(frozen=True)
class Place:
    url: str
    keys: dict[str, str]
    home: Home | None = None  # of an endpoint of ours


@contextmanager
def serving(recipe: Path | None, changes: dict[str, Any]) -> Iterator[Place]:
    """The endpoint as ``agm serve`` starts it, on a home of its own."""
    from serve import deploy

    settings = load_recipe(recipe).with_changes(changes)
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home").create()
        with local.connect(home, settings):
            initialise(home, settings)
            try:
                url = deploy.start(home, settings, port=0).url
                keys = json.loads(credentials.path(home).read_text(encoding="utf-8"))
                yield Place(url, keys, home)
            finally:
                deploy.stop()


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    return {"n": len(milliseconds), "p50": cuts[49], "p95": cuts[94], "max": max(milliseconds)}


def keep(name: str, result: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


def bars(name: str, title: str, unit: str, values: dict[str, float]) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.45 * len(values)))
    drawn = axes.barh(list(values), list(values.values()), color="#2a6549")
    axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(title)
    figure.tight_layout()
    path = RESULTS / f"{name}.png"
    figure.savefig(path, dpi=120)
    return path
