"""How many facts each kind of memory holds, without any model around it, beside what theory says.

    python benchmarks/memory_recall.py

Keys are random unit vectors of width d, values one of 256 random unit vectors; every key is written 4 times, each time
with another value, and only the last one counts. A recall is right where the value read is nearest to the one written
last. Fast weights are a d x d matrix under the delta rule (rates 0.5 and 1) or under the Hebbian rule, which adds and
never takes away. Theory: writing N random keys in turn, the delta rule at rate 1 projects what it knew out of each new
key's direction, so a fact keeps (1 - 1/d)^m of itself after m later writes, and the others leave noise of the same
order; about d facts fit. Slots have a row for every key and no such ceiling; product slots have as many as their table,
and two keys that fall on one slot cost one of them.
Writes results/memory_recall.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn

from pipeline.evaluate.metrics import share
from pipeline.evaluate.plots import COLOURS
from pipeline.model.delta_rule import chunked
from pipeline.model.product_keys import ProductSlots
from pipeline.model.slots import Reading, Slots

D, CLASSES, TIMES = 64, 256, 4
KEYS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
HOW = Reading(threshold=0.9, temperature=0.02, top_k=4)
OUT = Path(__file__).parent / "results" / "memory_recall.json"


def delta(rate: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def recall(keys: Tensor, written: Tensor, values: Tensor) -> Tensor:
        rates = torch.full(written.shape[:1], rate)[None]
        _, memory = chunked(torch.zeros(1, D, D), written[None], written[None], values[None], rates)
        return keys @ memory[0]

    return recall


def hebbian(keys: Tensor, written: Tensor, values: Tensor) -> Tensor:
    return keys @ (written.T @ values)


def slots(keys: Tensor, written: Tensor, values: Tensor) -> Tensor:
    memory = Slots.empty(1, D, torch.device("cpu"))
    for key, value in zip(written.split(128), values.split(128), strict=True):
        rates = torch.ones(1, len(key))
        _, memory = memory.write(key[None], key[None], value[None], rates, HOW, floor=0.5)
    return memory.read(keys[None], HOW)[0]


def product_slots(keys: Tensor, written: Tensor, values: Tensor) -> Tensor:
    table = ProductSlots.random(1024, D, D)  # 1,048,576 slots
    table.write(written, values)
    return table.read(keys)


MEMORIES = {
    "slots": slots,
    "product slots (1,048,576)": product_slots,
    "fast weights, rate 0.5": delta(0.5),
    "fast weights, rate 1": delta(1.0),
    "fast weights, Hebbian": hebbian,
}


def measure(name: str, number: int, seeds: int) -> dict[str, Any]:
    right: list[bool] = []
    began = time.perf_counter()
    for seed in range(seeds):
        random = torch.Generator().manual_seed(seed)
        keys = nn.functional.normalize(torch.randn(number, D, generator=random), dim=-1)
        classes = nn.functional.normalize(torch.randn(CLASSES, D, generator=random), dim=-1)
        order = torch.cat([torch.randperm(number, generator=random) for _ in range(TIMES)])
        labels = torch.randint(CLASSES, order.shape, generator=random)
        last = labels[-number:][order[-number:].argsort()]
        read = MEMORIES[name](keys, keys[order], classes[labels])
        right += ((read @ classes.T).argmax(-1) == last).tolist()
    found = share(right)
    row = {"memory": name, "keys": number, "recall": found.value, "low": found.low, "high": found.high, "n": found.n}
    return row | {"seconds_a_write": (time.perf_counter() - began) / (seeds * number * TIMES)}


def theory(keys: int) -> float:
    """Share of itself that an average fact keeps in a d x d matrix at rate 1: the mean of (1 - 1/d)^m over m < keys."""
    kept = 1 - 1 / D
    return (1 - kept**keys) / (keys * (1 - kept))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(MEMORIES, COLOURS, strict=False):
        points = [(row["keys"], row["recall"]) for row in rows if row["memory"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name)
    axes.plot(KEYS, [theory(n) for n in KEYS], color="black", linestyle=":", label="theory: share kept, rate 1")
    axes.axvline(D, color="grey", linewidth=0.8, linestyle="--")
    axes.text(D, 1.04, "d", ha="center", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set(xlabel=f"keys, each written {TIMES} times", ylabel="last value recalled", ylim=(-0.02, 1.1))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    wanted = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    cells = [(name, number) for name in MEMORIES for number in KEYS]
    rows = [measure(name, number, wanted.seeds) for name, number in track(cells, description="writing and reading")]
    for row in rows:
        print({name: round(x, 6) if isinstance(x, float) else x for name, x in row.items()})
    header = {"command": "python benchmarks/memory_recall.py", "d": D, "classes": CLASSES, "times": TIMES}
    header |= {"seeds": wanted.seeds, "cores": os.cpu_count(), "load": os.getloadavg()[1]}
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    wanted.out.write_text(json.dumps(header | {"rows": rows}, indent=1) + "\n")
    plot(rows, wanted.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
