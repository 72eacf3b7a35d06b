"""The one train function: updates, pretraining, tuning trials and tests differ only in the configuration that it gets.

To resume is to go on with an interrupted run: the same name, its own latest checkpoint, and from there exactly the
steps that an uninterrupted run takes. To start from a bundle is a new run from that bundle's weights.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from pipeline.config import Recipe, TrainSettings, parse_recipe
from pipeline.files import write_whole
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.revision import revision
from pipeline.train.checkpoints import load_state, save_state
from pipeline.train.dataset import TrainingSet
from pipeline.train.distributed import Sharing, rank_and_world
from pipeline.train.loop import Loop, Step
from pipeline.train.methods import LoraMethod, build_method
from pipeline.train.placement import settle
from pipeline.train.utilisation import device_name, utilisation

BUNDLE_FOLDER, ADAPTER_FOLDER = "bundle", "adapter"
SHOWN_EVERY_S = 0.5


def train_worker(config: dict[str, Any]) -> None:
    """Per-worker loop. ``config``: recipe (tree), champion (the bundle to start from), data (training set),
    through_seq, cycle, parent (the champion's version), progress (a file, or None).

    Resumes from the run's latest checkpoint where there is one.
    """
    recipe = parse_recipe(config["recipe"], origin="the submitted recipe")
    settle(recipe.scaling)
    if (device := ray.train.torch.get_device()).type == "cuda":
        torch.cuda.set_device(device)  # workers on one node see all of its GPUs
    torch.manual_seed(recipe.train.seed)
    with _latest() as folder:
        loop = _begun(config, recipe, folder)
    lineage = {"recipe": recipe, "trained_through_seq": config["through_seq"]}
    lineage |= {name: config[name] for name in ("cycle", "parent")}
    watch = Watch(config.get("progress"))
    for step in loop.run():
        watch.show(loop, step)
        if checkpoint_due(loop, step, recipe.train):
            _report(loop, watch.figures(loop, step), lineage)


def _begun(config: dict[str, Any], recipe: Recipe, folder: Path | None) -> Loop:
    """The run's loop, from its beginning or from the checkpoint in ``folder``."""
    before = load_state(folder) if folder else None
    sharing = Sharing(before["shared"] if before else ())
    champion = Answerer.load(Bundle.load(Path(config["champion"])))
    method = build_method(champion, TrainingSet.load(Path(config["data"])), recipe.train, sharing)
    loop = Loop(method, recipe.train, parallel=recipe.scaling.parallel, sharing=sharing)
    if before:
        loop.load(before, folder)
    return loop


def checkpoint_due(loop: Loop, step: Step, settings: TrainSettings) -> bool:
    """Every ``checkpoint_steps`` steps, or four times in a run, at the end of an epoch; and when the run ends."""
    if loop.finished:
        return True
    if settings.checkpoint_steps:
        return step.number % settings.checkpoint_steps == 0
    return step.epoch_loss is not None and loop.cursor.epoch % max(1, settings.epochs // 4) == 0


class Watch:
    """How the run is getting on: in its progress file all the time, in its reports at every checkpoint."""

    def __init__(self, file: str | None) -> None:
        self.file = Path(file) if file is not None and rank_and_world()[0] == 0 else None
        self.started = self.shown = time.monotonic()
        self.tokens = 0

    def show(self, loop: Loop, step: Step) -> None:
        """For whoever watches the run's folder; ``ray.train.report`` is too slow to be called every step."""
        self.tokens += step.tokens
        now = time.monotonic()
        if self.file is None or (now - self.shown < SHOWN_EVERY_S and not loop.finished):
            return
        self.shown = now
        done = step.steps if loop.finished else step.number  # it may have learned enough before the last epoch
        seen = {"done": done, "total": step.steps, **self._speed(loop, now)}
        if loop.cursor.tokens:  # rank 0's own part of the epoch so far: nobody else is asked
            seen["loss"] = loop.cursor.loss * rank_and_world()[1] / loop.cursor.tokens
        write_whole(self.file, json.dumps(seen))

    def _speed(self, loop: Loop, now: float) -> dict[str, float]:
        """Of all workers together; ``mfu`` where it is known."""
        speed = self.tokens / max(now - self.started, 1e-9)
        per_token = loop.method.flops_per_token
        used = utilisation(speed, per_token, rank_and_world()[1], device_name(loop.settings))
        return {"tokens_per_second": speed, **({} if used is None else {"mfu": used})}

    def figures(self, loop: Loop, step: Step) -> dict[str, Any]:
        """On every rank at once."""
        loss = loop.mean_loss() if step.epoch_loss is None else step.epoch_loss
        seconds = time.monotonic() - self.started
        return {
            "epoch": -(-step.number * loop.settings.epochs // step.steps),
            "epochs": loop.settings.epochs,
            "step": step.number,
            "loss": loss,
            "tokens": self.tokens,
            "seconds": seconds,
            **self._speed(loop, self.started + seconds),
            "workers": rank_and_world()[1],
            "replay_active": len(loop.method.replay_tasks),
        }


def _report(loop: Loop, metrics: dict[str, Any], lineage: Any) -> None:
    """Metrics and a checkpoint that describes itself: the trainer's state and the bundle, by rank 0.

    Where weights are sharded every rank adds its part of the state, and they are put together for a bundle only once
    the run is over.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, first = Path(name), rank_and_world()[0] == 0
        in_parts = save_state(loop.state(), folder)
        if loop.finished or not in_parts:
            bundle = replace(loop.method.result(), **lineage, code=revision())
            if first:
                bundle.save(folder / BUNDLE_FOLDER)
                if isinstance(loop.method, LoraMethod):
                    loop.method.export(folder / ADAPTER_FOLDER)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(name) if first or in_parts else None)


@contextmanager
def _latest() -> Iterator[Path | None]:
    """The folder of this run's latest checkpoint; None where the run is new."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)
