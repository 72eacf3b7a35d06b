"""What the train function trains: a method, its learner, and the tasks that a step takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline.model.bundle import Bundle


class Task(Protocol):
    """One unit of a batch."""

    @property
    def tokens(self) -> int:
        """Targets in it: a batch's loss is the sum over tasks divided by the sum of these."""
        ...

    @property
    def home(self) -> int | None:
        """Tasks of one home go to the same rank; ``None``: to any."""
        ...


class Learner(nn.Module):
    """forward(tasks, replay_weight) -> loss summed over target tokens; its parameters are what training writes.

    ``reenters``: whether a layer may run more than once in a forward pass.
    """

    reenters = True

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The decoder layers among its weights: sharded and compiled one by one."""
        return ()

    def anchor(self) -> Tensor:
        """Zero, as a function of every trained parameter: one that a batch leaves out still joins the all-reduce.

        Shards need none: what a batch leaves out has no gradient on any rank.
        """
        trained = [p.sum() for p in self.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        return sum(trained, start=torch.zeros(())) * 0


class Method(Protocol):
    """Prepared once per worker, then asked for tasks, the learner and what the learner has become."""

    learner: Learner
    replay_tasks: list[Any]

    @property
    def flops_per_token(self) -> float | None:
        """Of a counted token; ``None`` where prompts, which are not counted, are most of the work."""

    def tasks_of(self, epoch: int) -> list[Any]: ...

    def result(self) -> Bundle:
        """On every rank at once: shards are put together for it."""
        ...


Share = Callable[[Callable[[Sequence[str]], Any], Sequence[str]], list[Any]]
"""Runs a function over this rank's part of a list and returns every rank's results in the list's order."""
