"""The one train function: updates, tuning trials and tests differ only in the configuration that it gets."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from pipeline.config import TrainSettings, parse_recipe
from pipeline.home import worker_home
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.train.dataset import TrainingSet
from pipeline.train.learner import Method, Share, Task
from pipeline.train.methods import build_method

BUNDLE_FOLDER, TRAINER_FILE = "bundle", "trainer.pt"


def train_worker(config: dict[str, Any]) -> None:
    """Per-worker loop. ``config``: recipe (tree), champion (bundle folder), data (training set), through_seq,
    cycle, parent (the champion's version).

    Resumes from the run's latest checkpoint where there is one.
    """
    worker_home()  # a worker that does not know its home must not start
    recipe = parse_recipe(config["recipe"], origin="the submitted recipe")
    os.nice(recipe.scaling.nice)
    torch.set_num_threads(recipe.scaling.threads_per_worker)
    torch.manual_seed(recipe.train.seed)
    champion = Answerer.load(Bundle.load(Path(config["champion"])))
    data = TrainingSet.load(Path(config["data"]))
    method = build_method(champion, data, recipe.train, _share())
    learner = _distributed(method.learner)
    optimizer = build_optimizer(learner, recipe.train)
    epoch = _resume(method, optimizer)
    lineage = {"recipe": recipe, "trained_through_seq": config["through_seq"]}
    lineage |= {name: config[name] for name in ("cycle", "parent")}
    every = max(1, recipe.train.epochs // 4)
    started = time.monotonic()
    while epoch < recipe.train.epochs:
        loss, tokens = run_epoch(method, learner, optimizer, recipe.train, epoch)
        epoch += 1
        learned = loss <= recipe.train.target_loss
        _show_progress(config.get("progress"), epoch, recipe.train.epochs)
        if epoch % every == 0 or epoch == recipe.train.epochs or learned:
            metrics = {"epoch": epoch, "epochs": recipe.train.epochs, "loss": loss, "tokens": tokens}
            metrics |= {"seconds": time.monotonic() - started, "replay_active": len(method.replay_tasks)}
            # A run that has learned enough is finished, also for whoever calls it again by its name.
            _report(method, optimizer, recipe.train.epochs if learned else epoch, metrics, lineage)
        if learned:
            break


def run_epoch(
    method: Method, learner: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainSettings, epoch: int
) -> tuple[float, int]:
    """One pass over all phrasings with replayed prompts mixed in; returns mean loss per target token, and tokens."""
    total, tokens = 0.0, 0
    rank, world = _rank_and_world()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, epoch)
    for batch in epoch_batches(method, settings, epoch):
        mine = batch[rank::world]
        count = sum(task.tokens for task in batch)
        with _autocast():
            loss = learner(mine, settings.replay_weight)
        # DDP averages over the ranks; the sum over all ranks divided by all target tokens is what is wanted.
        (loss * world / count).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total, tokens = total + float(loss.detach()), tokens + count
    return _sum_over_ranks(total) / max(tokens, 1), tokens


def learning_rate(settings: TrainSettings, epoch: int) -> float:
    """Falls in a straight line to ``decay`` of itself: a function of the epoch alone, so that a resumed run goes on."""
    return settings.learning_rate * (1 - (1 - settings.decay) * epoch / max(1, settings.epochs - 1))


def epoch_batches(method: Method, settings: TrainSettings, epoch: int) -> Iterator[list[Task]]:
    """The same shuffled global batches on every rank, a function of seed and epoch alone."""
    generator = random.Random(f"{settings.seed}/{epoch}")
    tasks, pool = method.tasks_of(epoch), method.replay_tasks
    wanted = round(settings.replay_ratio * len(tasks))
    replayed = generator.sample(pool, wanted) if wanted < len(pool) else list(pool)
    mixed = [*tasks, *replayed]
    generator.shuffle(mixed)
    for start in range(0, len(mixed), settings.batch_size):
        yield mixed[start : start + settings.batch_size]


def build_optimizer(learner: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """``sgd`` is the bare delta rule; the others rescale its step per weight."""
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    kinds: dict[str, type[torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.AdamW,
    }
    return kinds[settings.optimizer](trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)  # type: ignore[call-arg]


def _report(
    method: Method, optimizer: torch.optim.Optimizer, epoch: int, metrics: dict[str, Any], lineage: Any
) -> None:
    """Metrics from every rank; rank 0 adds a checkpoint that describes itself: a bundle and the trainer's state."""
    if _rank_and_world()[0] != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        replace(method.result(), **lineage).save(Path(folder) / BUNDLE_FOLDER)
        state = {"learner": _trained_state(method), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, Path(folder) / TRAINER_FILE)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _show_progress(file: str | None, done: int, total: int) -> None:
    """For whoever watches the run's folder; ``ray.train.report`` is too slow to be called every epoch."""
    if file is None or _rank_and_world()[0] != 0:
        return
    partial = Path(file).with_suffix(".partial")
    partial.write_text(json.dumps({"done": done, "total": total}), encoding="utf-8")
    partial.replace(file)


def _trained_state(method: Method) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in method.learner.named_parameters() if p.requires_grad}


def _resume(method: Method, optimizer: torch.optim.Optimizer) -> int:
    """The epoch to go on with; 0 where the run is new."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / TRAINER_FILE, weights_only=True)
    method.learner.load_state_dict(state["learner"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])


def _distributed(learner: nn.Module) -> nn.Module:
    return ray.train.torch.prepare_model(learner) if _rank_and_world()[1] > 1 else learner


def _rank_and_world() -> tuple[int, int]:
    """From the process group, which Ray has set up; one process on its own has none."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _share() -> Share:
    rank, world = _rank_and_world()

    def run(function: Callable[[Sequence[str]], Any], everything: Sequence[str]) -> list[Any]:
        mine = list(function(everything[rank::world])) if everything[rank::world] else []
        if world == 1:
            return mine
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, mine)
        return [parts[i % world][i // world] for i in range(len(everything))]

    return run


def _sum_over_ranks(value: float) -> float:
    if _rank_and_world()[1] == 1:
        return value
    total = torch.tensor(value, device=ray.train.torch.get_device())
    dist.all_reduce(total)
    return float(total)


def _autocast() -> torch.autocast:
    """bfloat16 on CUDA; full precision on a CPU, where runs are compared bit by bit."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")
