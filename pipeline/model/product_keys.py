"""Product keys: n x n slots addressed by 2 n half keys, so that the best of a million slots cost 2,000 comparisons.

A slot's key is the pair (a, b) of half keys, and its score is q_1 . a + q_2 . b. The k best slots are among the k best
a times the k best b (Lample et al. 2019, arXiv:1907.05242, section 3.2; at scale Berges et al. 2024, arXiv:2412.09764).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def product_topk(queries: Tensor, halves: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Queries (..., d), halves (2, n, d / 2) -> scores and slot numbers (..., k), best first; slot = a * n + b."""
    n = halves.shape[1]
    if k > n * n:
        raise ValueError(f"k = {k}: there are {n} x {n} slots")
    first, second = (part @ half.T for part, half in zip(queries.chunk(2, dim=-1), halves, strict=True))
    (score_a, a), (score_b, b) = (scores.topk(min(k, n), dim=-1) for scores in (first, second))
    scores = (score_a[..., :, None] + score_b[..., None, :]).flatten(-2)
    slots = (a[..., :, None] * n + b[..., None, :]).flatten(-2)
    best, where = scores.topk(k, dim=-1)
    return best, slots.gather(-1, where)


def product_key(slots: Tensor, halves: Tensor) -> Tensor:
    """The keys of slot numbers (...): (..., d)."""
    n = halves.shape[1]
    return torch.cat([halves[0][slots // n], halves[1][slots % n]], dim=-1)


@dataclass
class ProductSlots:
    """A table of n * n slots, read by equation 2 and written by equation 3; its values are zero until written.

    halves (2, n, d / 2), each half key of length sqrt(1/2), so that a slot's key has length 1; values (n * n, d_value).
    Queries have length 1. A read or a write touches ``top_k`` slots and none of the others.
    """

    halves: Tensor
    values: Tensor
    temperature: float = 0.02
    top_k: int = 1

    @classmethod
    def random(cls, n: int, d: int, d_value: int, seed: int = 0, top_k: int = 1) -> ProductSlots:
        generator = torch.Generator().manual_seed(seed)
        halves = nn.functional.normalize(torch.randn(2, n, d // 2, generator=generator), dim=-1) * 0.5**0.5
        return cls(halves, torch.zeros(n * n, d_value), top_k=top_k)

    def address(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, d) -> weights and slot numbers, each (batch, top_k)."""
        scores, slots = product_topk(queries, self.halves, self.top_k)
        return (scores / self.temperature).softmax(dim=-1), slots

    def read(self, queries: Tensor) -> Tensor:
        """(batch, d) -> (batch, d_value)."""
        weights, slots = self.address(queries)
        return (weights[..., None] * self.values[slots]).sum(-2)

    def write(self, queries: Tensor, targets: Tensor, rate: float = 1.0) -> None:
        """value <- value + rate * (target - read) * weight, one pair after the other: (pairs, d), (pairs, d_value)."""
        weights, slots = self.address(queries)
        for weight, slot, target in zip(weights, slots, targets, strict=True):
            error = target - weight @ self.values[slot]
            self.values[slot] += rate * weight[:, None] * error
