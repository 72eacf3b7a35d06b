"""Adam, slot by slot: what one lesson's slot learns does not depend on how many others are trained beside it.

A step of ordinary Adam moves every slot, also those that its batch left out, by what is left of their momentum, and
its bias correction counts the steps of all. So the same learning rate means another thing for 100 lessons than for
10,000. Here a slot that a batch leaves out stands still, and counts its own steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# A slot takes some ten steps in all, so both averages have to be short.
BETAS = (0.5, 0.9)


class SlotAdam(torch.optim.Optimizer):
    """For parameters (slots, L, d): Kingma and Ba 2015, equations of their algorithm 1, for each slot alone.

    A shard holds some of the slots, and no other rank's are needed for them.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        lr, betas, state = group["lr"], group["betas"], self.state[parameter]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["steps"] = torch.zeros_like(parameter[:, :1, :1], dtype=torch.long)
        own, grad = _own(parameter), _own(grad)
        means, squares, counts = (_own(state[name]) for name in ("mean", "square", "steps"))
        touched = (grad != 0).flatten(1).any(1).nonzero()[:, 0]
        mean = means[touched].lerp(grad[touched], 1 - betas[0])
        square = squares[touched].lerp(grad[touched] ** 2, 1 - betas[1])
        means[touched], squares[touched] = mean, square
        counts[touched] += 1
        steps = counts[touched]
        mean, square = mean / (1 - betas[0] ** steps), square / (1 - betas[1] ** steps)
        own[touched] *= 1 - lr * group["weight_decay"]  # decoupled, as in AdamW
        own[touched] -= lr * mean / (square.sqrt() + group["eps"])


def _own(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, in place; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
