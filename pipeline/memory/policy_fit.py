"""The policy's first weights, fitted offline where every strategy was tried on every question.

With all rewards known nothing has to be explored or reweighed: the policy is a multinomial logistic regression whose
target is shared out over the strategies that were right (over ``weights`` where none was: what cannot be helped is left
alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.memory.state import FEATURES, STATE_VERSION

PENALTY = 1e-3  # on squared weights, per trial: small against a few hundred trials


@dataclass(frozen=True)
class Trial:
    """A state, and for each strategy that was possible whether its answer was right; ``weight`` beside others."""

    state: tuple[float, ...]
    right: dict[str, bool]
    weight: float = 1.0

    @property
    def target(self) -> dict[str, float]:
        hits = sum(self.right.values())
        if not hits:
            return {name: float(name == "weights") for name in self.right}
        return {name: hit / hits for name, hit in self.right.items()}


def fit_policy(trials: Sequence[Trial], strategies: Sequence[str]) -> dict[str, Any]:
    """What :func:`pipeline.memory.policy.policy_from` reads. The problem is convex: no seed, one result."""
    inputs = torch.tensor([trial.state for trial in trials], dtype=torch.float64)  # (trials, features)
    targets = torch.tensor([[trial.target.get(name, 0.0) for name in strategies] for trial in trials]).double()
    shares = torch.tensor([trial.weight for trial in trials]).double()
    shares /= shares.sum()
    closed = torch.tensor([[name not in trial.right for name in strategies] for trial in trials])
    weights = torch.zeros(len(strategies), len(FEATURES), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        scores = (inputs @ weights.T).masked_fill(closed, -1e9)
        loss: Tensor = -(shares @ (targets * scores.log_softmax(-1)).sum(-1)) + PENALTY * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    rows = {name: [round(w, 4) for w in row] for name, row in zip(strategies, weights.tolist(), strict=True)}
    return {"version": STATE_VERSION, "features": list(FEATURES), "weights": rows}
