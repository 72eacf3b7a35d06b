"""The loop inside the train function: global batches, optimiser steps, and a state from which a run goes on exactly.

Everything that a step depends on is a function of the settings and of what :meth:`Loop.state` holds: weights,
optimiser, cursor (also inside an epoch), generators, and what the ranks worked out together before the first step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from pipeline.config import TrainSettings
from pipeline.model.bundle import whole
from pipeline.train.checkpoints import fill
from pipeline.train.distributed import (
    Sharing,
    autocast,
    gathered,
    placed_like,
    rank_and_world,
    spread,
    sum_over_ranks,
    summing,
)
from pipeline.train.learner import Method, Task
from pipeline.train.penalties import build_penalty
from pipeline.train.slot_adam import SlotAdam

FORMAT = 2  # of a state: memory slots come first


@dataclass(frozen=True)
class Cursor:
    """``batch`` global batches of ``epoch`` are done; over them, this rank's sum of losses and all ranks' targets."""

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Step:
    """What one optimiser step has come to. ``number`` counts from 1, of ``steps`` in all."""

    number: int
    steps: int
    tokens: int
    sequences: int  # of the step, replayed ones included
    epoch_loss: float | None = None  # mean per target token over all ranks, after an epoch's last step


class Loop:
    """A method's training, step by step. Every rank runs one, and calls its methods at the same points."""

    def __init__(
        self, method: Method, settings: TrainSettings, *, parallel: str = "ddp", sharing: Sharing | None = None
    ) -> None:
        self.method, self.settings = method, settings
        self.sharing = sharing or Sharing()
        self.penalty = build_penalty(method, settings)
        self.learner: nn.Module = spread(method.learner, parallel, settings)
        self.optimizer = build_optimizer(self.learner, settings)
        self.cursor = Cursor()

    @property
    def finished(self) -> bool:
        return self.cursor.epoch >= self.settings.epochs

    def run(self) -> Iterator[Step]:
        """Every step that is left."""
        while not self.finished:
            yield from self.epoch()

    def epoch(self) -> Iterator[Step]:
        """The steps that are left of this epoch."""
        batches = list(epoch_batches(self.method, self.settings, self.cursor.epoch))
        steps = self.settings.epochs * len(batches)
        for number, batch in enumerate(batches[self.cursor.batch :], self.cursor.batch + 1):
            step = self.cursor.epoch * len(batches) + number
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.settings, step - 1, steps)
            loss, tokens = self._step(batch), sum(task.tokens for task in batch)
            done = self.cursor
            self.cursor = replace(done, batch=number, loss=done.loss + loss, tokens=done.tokens + tokens)
            ended = self._end_epoch() if number == len(batches) else None
            yield Step(step, steps, tokens, len(batch), ended)
        if not batches:
            self.cursor = Cursor(self.settings.epochs)

    def mean_loss(self) -> float:
        """Per target token since the epoch began, over all ranks."""
        return sum_over_ranks(self.cursor.loss) / max(self.cursor.tokens, 1)

    def _end_epoch(self) -> float:
        loss = self.mean_loss()
        # A run that has learned enough is finished, also for whoever calls it again by its name.
        learned = loss <= self.settings.target_loss
        self.cursor = Cursor(self.settings.epochs if learned else self.cursor.epoch + 1)
        return loss

    def _step(self, batch: Sequence[Task]) -> float:
        """One optimiser step on a global batch; this rank's sum of losses.

        The step is the same on any number of ranks and with any ``micro_batch``: the sum of all losses is divided by
        all target tokens, wherever they were.
        """
        rank, world = rank_and_world()
        shares, total = shared_out(batch, world), 0.0
        mine, most = shares[rank], max(map(len, shares))
        size = self.settings.micro_batch or len(batch)
        parts = math.ceil(most / size)
        targets = sum(task.tokens for task in batch)
        for number in range(parts):
            part = mine[number * size : (number + 1) * size]
            with summing(self.learner, number == parts - 1):
                with autocast(self.settings):
                    # A rank without work takes part with weight 0: the others wait for it.
                    loss = self.learner(part or batch[:1], self.settings.replay_weight) * bool(part)
                (loss * world / targets).backward()  # the mean over the ranks is taken when gradients are reduced
            total += float(loss.detach())
        self.penalty.add_gradients(self.learner)
        nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def state(self) -> dict[str, Any]:
        """Plain tensors and numbers; what is sharded stays so, each rank's part with itself. On every rank at once."""
        own = {"loss": self.cursor.loss, "generators": _generators()}
        return {
            "format": FORMAT,
            "learner": {name: _kept(p) for name, p in self._trained().items()},
            "optimizer": tree_map_only(Tensor, _kept, self.optimizer.state_dict()),
            "cursor": {"epoch": self.cursor.epoch, "batch": self.cursor.batch, "tokens": self.cursor.tokens},
            "ranks": gathered(own),
            "shared": self.sharing.kept,
        }

    def load(self, state: dict[str, Any], folder: Path | None = None) -> None:
        """Go on from ``state``, with the parts of it that lie in ``folder``; any number of ranks, all at once.

        On another number of ranks the generators of new ranks start afresh.
        """
        if state["format"] != FORMAT:
            raise ValueError(
                f"the run's checkpoint has format {state['format']}, and this version goes on from format {FORMAT}: "
                "remove the run's folder to begin anew"
            )
        placed = self._placed(state)
        if folder is not None:
            fill(placed, folder)
        for name, parameter in self._trained().items():
            parameter.data.copy_(placed["learner"][name])
        self.optimizer.load_state_dict({**state["optimizer"], **placed["optimizer"]})
        (rank, world), ranks = rank_and_world(), state["ranks"]
        if len(ranks) == world:
            loss = ranks[rank]["loss"]
        else:
            loss = sum(each["loss"] for each in ranks) if rank == 0 else 0.0
        self.cursor = Cursor(loss=loss, **state["cursor"])
        if rank < len(ranks):
            _set_generators(ranks[rank]["generators"])

    def _placed(self, state: dict[str, Any]) -> dict[str, Any]:
        """Weights and moments of ``state``, under their names in it, as the parameters lie here."""
        trained = self._trained()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            index: {
                key: placed_like(value, parameters[index]) if _goes_with(value, parameters[index]) else value
                for key, value in entries.items()
            }
            for index, entries in state["optimizer"]["state"].items()
        }
        weights = {name: placed_like(value, trained[name].data) for name, value in state["learner"].items()}
        return {"learner": weights, "optimizer": {"state": moments}}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.method.learner.named_parameters() if p.requires_grad}


def run_epoch(loop: Loop) -> float:
    """What is left of the epoch; its mean loss per target token."""
    losses = [step.epoch_loss for step in loop.epoch()]
    return losses[-1] or 0.0


def learning_rate(settings: TrainSettings, step: int, steps: int) -> float:
    """The rate of step ``step`` of ``steps``, counted from 0: a function of these alone, so that a resumed run goes on.

    Over the first ``warmup`` steps it rises in a straight line. From there it falls to ``decay`` of itself at the last
    step, in a straight line or along half a cosine wave:

        linear  1 - (1 - decay) x        cosine  decay + (1 - decay) (1 + cos pi x) / 2        x = share of what is left
    """
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, steps - 1 - warm)
    if settings.schedule == "cosine":
        return settings.learning_rate * (settings.decay + (1 - settings.decay) * (1 + math.cos(math.pi * share)) / 2)
    return settings.learning_rate * (1 - (1 - settings.decay) * share)


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


def shared_out(batch: Sequence[Task], world: int) -> list[list[Task]]:
    """Every rank's part of a global batch: tasks that have a home by their homes, the others by turns."""
    shares: list[list[Task]] = [[] for _ in range(world)]
    for number, task in enumerate(batch):
        shares[(number if task.home is None else task.home) % world].append(task)
    return shares


def build_optimizer(learner: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """``sgd`` is the bare delta rule; the others rescale its step per weight."""
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    kind = settings.optimizer
    if kind == "auto":
        kind = "slot_adam" if settings.method == "memory" else "adam"
    kinds: dict[str, type[torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.AdamW,
        "slot_adam": SlotAdam,
    }
    return kinds[kind](trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)  # type: ignore[call-arg]


def _kept(tensor: Tensor) -> Tensor:
    """Of a state: a copy, but for what is sharded, whose parts are too large to be in memory twice."""
    return tensor.detach() if isinstance(tensor, DTensor) else whole(tensor)


def _goes_with(value: Any, parameter: Tensor) -> bool:
    """Moments, and what is counted by slot, have their parameter's dimensions; the count of all steps has none."""
    return isinstance(value, Tensor) and value.ndim == parameter.ndim


def _generators() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
