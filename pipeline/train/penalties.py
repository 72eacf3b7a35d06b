"""What holds trained weights near where they started, each one small class found by name.

``none``  nothing
``l2``    weight / 2 * sum (theta - theta_start)^2                       (Kirkpatrick et al. 2017 compare with it)
``ewc``   weight / 2 * sum F (theta - theta_start)^2, elastic weight consolidation (Kirkpatrick et al. 2017,
          arXiv:1612.00796), with F the diagonal of the Fisher information in the champion's own answers

Their gradients are added to the loss's: the step is then the same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.config import TrainSettings
from pipeline.train.distributed import placed_like, rank_and_world
from pipeline.train.learner import Method


class Penalty(Protocol):
    """Made before the learner is spread over the ranks, from the weights that training starts with."""

    def add_gradients(self, learner: nn.Module) -> None: ...


class NoPenalty:
    def __init__(self, method: Method, settings: TrainSettings) -> None:
        pass

    def add_gradients(self, learner: nn.Module) -> None:
        pass


class L2ToStart:
    def __init__(self, method: Method, settings: TrainSettings) -> None:
        self.weight = settings.penalty_weight
        self.start = [p.detach().clone() for p in method.learner.parameters() if p.requires_grad]
        self.stiffness: Sequence[Tensor | float] = [1.0] * len(self.start)

    @torch.no_grad()
    def add_gradients(self, learner: nn.Module) -> None:
        trained = [p for p in learner.parameters() if p.requires_grad]
        for number, parameter in enumerate(trained):
            if self.start[number].device != parameter.device or type(self.start[number]) is not type(parameter.data):
                self._place(number, parameter.data)
            pull = self.weight * self.stiffness[number] * (parameter - self.start[number])
            parameter.grad = pull if parameter.grad is None else parameter.grad + pull

    def _place(self, number: int, parameter: Tensor) -> None:
        """Once, as the parameter lies: sharded where it is."""
        self.start[number] = placed_like(self.start[number], parameter)
        stiffness = self.stiffness[number]
        if isinstance(stiffness, Tensor):
            self.stiffness = [*self.stiffness]
            self.stiffness[number] = placed_like(stiffness, parameter)


class ElasticWeights(L2ToStart):
    def __init__(self, method: Method, settings: TrainSettings) -> None:
        super().__init__(method, settings)
        self.stiffness = fisher(method.learner, method.reference_tasks[: settings.fisher_prompts])  # type: ignore[attr-defined]


def fisher(learner: nn.Module, tasks: Sequence[Any]) -> list[Tensor]:
    """Mean over tasks of (d log p(answer) / d theta)^2, per trained weight; an answer is the champion's own.

    That is the diagonal of the empirical Fisher information, its expectation over answers replaced by the mode.
    """
    trained = [p for p in learner.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in trained]
    rank, world = rank_and_world()
    for task in tasks[rank::world]:
        loss = learner([replace(task, replayed=False)], 0.0)
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        for into, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                into += gradient.square()
    if world > 1:
        for into in total:
            dist.all_reduce(into)
    return [into / max(1, len(tasks)) for into in total]


PENALTIES: dict[str, Callable[[Method, TrainSettings], Penalty]] = {
    "none": NoPenalty,
    "l2": L2ToStart,
    "ewc": ElasticWeights,
}


def build_penalty(method: Method, settings: TrainSettings) -> Penalty:
    return PENALTIES[settings.penalty](method, settings)
