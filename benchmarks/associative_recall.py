"""Associative recall by decoders from nothing: slots, fast weights (a gated DeltaNet state), and no memory.

    python benchmarks/associative_recall.py                  # three kinds, three seeds
    python benchmarks/associative_recall.py --kinds slots --seeds 0

Each is `scratch:tiny` with the same training (`pipeline/train/recall.py`): pairs told in segments that attention cannot
see when it is asked, a quarter of the keys told twice; examined on keys that training never showed. Chance is 1/256.
Rows go to results/associative_recall.json (those of other kinds and seeds in it are kept), the plot beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.progress import track

from benchmarks.record import save
from pipeline.config import Recipe
from pipeline.evaluate.metrics import share
from pipeline.evaluate.plots import COLOURS
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.model.scratch import KINDS, SIZES
from pipeline.train.dataset import TrainingSet
from pipeline.train.loop import Loop, run_epoch
from pipeline.train.methods import build_method
from pipeline.train.recall import CHANCE, examine, start_token

PAIRS = (8, 16, 32, 64, 128, 256, 512, 1024)
OUT = Path(__file__).parent / "results" / "associative_recall.json"


def recipe(kind: str, seed: int, epochs: int) -> Recipe:
    return Recipe().with_changes(
        {
            "model.base": f"scratch:tiny:{kind}",
            "train.method": "recall",
            "train.seed": seed,
            "train.epochs": epochs,
            "train.learning_rate": 3e-3,
            "train.decay": 0.02,
            "train.replay_ratio": 0.0,
            "train.recall.episodes": 160,
            "train.recall.pairs": (16, 32, 64, 128, 256),
        }
    )


def measure(kind: str, seed: int, epochs: int, episodes: int) -> list[dict[str, Any]]:
    """Train one decoder and examine it at every number of pairs."""
    settings = recipe(kind, seed, epochs)
    began = time.monotonic()
    method = build_method(
        Answerer.load(Bundle.initial(settings)), TrainingSet((), ()), settings.train, lambda f, x: f(x)
    )
    loop = Loop(method, settings.train)
    for _ in track(range(epochs), description=f"training {kind}, seed {seed}"):
        loss = run_epoch(loop)
    seconds = time.monotonic() - began
    trained = Answerer.load(method.result())
    rows = []
    for pairs in PAIRS:
        found = examine(trained.backbone.model, start_token(trained.backbone), pairs, episodes, seed=10**6 + seed)
        recall = share(found.right)
        row = {
            "kind": kind,
            "seed": seed,
            "pairs": pairs,
            "recall": recall.value,
            "low": recall.low,
            "high": recall.high,
        }
        row |= {"n": recall.n, "stale": sum(found.stale) / max(1, len(found.stale)), "overwritten": len(found.stale)}
        row |= {"slots": found.slots, "training_seconds": seconds, "training_loss": loss, "seconds": found.seconds}
        print({name: round(x, 4) if isinstance(x, float) else x for name, x in row.items()}, flush=True)
        rows.append(row)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Mean over the seeds; the lines mark d_head pairs (what a d x d state is built for) and 16 d_head."""
    d_head = SIZES["tiny"].d_head
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        by_pairs = {pairs: [r["recall"] for r in rows if (r["kind"], r["pairs"]) == (kind, pairs)] for pairs in PAIRS}
        points = [(pairs, sum(found) / len(found)) for pairs, found in by_pairs.items() if found]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=kind.replace("_", " "))
    axes.axhline(CHANCE, color="grey", linewidth=0.8, linestyle=":", label="chance")
    for pairs, name in ((d_head, "d"), (16 * d_head, "16 d")):
        axes.axvline(pairs, color="grey", linewidth=0.8, linestyle="--")
        axes.text(pairs, 1.04, name, ha="center", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="pairs told in earlier segments", ylabel="recall of keys never seen in training", ylim=(-0.02, 1.1))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60, help="of 10 steps of 16 episodes")
    parser.add_argument("--episodes", type=int, default=8, help="examined at each number of pairs")
    parser.add_argument("--out", type=Path, default=OUT)
    wanted = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    for kind in wanted.kinds:
        for seed in wanted.seeds:
            fresh = measure(kind, seed, wanted.epochs, wanted.episodes)
            kept = json.loads(wanted.out.read_text())["rows"] if wanted.out.exists() else []
            rows = [r for r in kept if (r["kind"], r["seed"]) != (kind, seed)] + fresh
            header = {"epochs": wanted.epochs, "d_head": SIZES["tiny"].d_head}
            header |= {"chance": CHANCE, "loss_of_chance": math.log(1 / CHANCE)}
            save(wanted.out, header | {"rows": rows})
            plot(rows, wanted.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
