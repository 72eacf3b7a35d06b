"""Weights that came as four bits are used as four bits where few rows run: a product then waits for memory alone.

The default model was published in GGUF's Q4_1: each group of 32 inputs has 16 evenly spaced levels. Its float32 weights
lie on that grid exactly, so nothing is rounded here that was not rounded by its publisher.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

GROUP = 32
LEVELS = 15  # the highest of 0...15
OFF_GRID = 0.01  # of a level's distance: float32's rounding is far below, weights that training has changed far above
FEW = 4  # rows up to which this kernel is faster than int8's


class Int4Weight:
    """``W = lowest + level * distance`` per group, for PyTorch's kernel, which reads bfloat16."""

    def __init__(self, levels: Tensor, lowest: Tensor, distance: Tensor) -> None:
        self._levels: Tensor | None = levels  # (out, in) uint8
        self._lowest, self._distance = lowest, distance  # (out, in / 32)

    @classmethod
    def of(cls, weight: Tensor) -> Int4Weight | None:
        """``None`` where a weight lies beside the grid that its group's smallest and largest span."""
        outputs, inputs = weight.shape
        if inputs % GROUP or outputs % 16:
            return None
        groups = weight.detach().float().unflatten(1, (-1, GROUP))
        lowest, highest = groups.aminmax(dim=-1, keepdim=True)
        distance = ((highest - lowest) / LEVELS).clamp_(min=1e-12)
        places = (groups - lowest) / distance
        levels = places.round()
        if (places - levels).abs().amax() > OFF_GRID:
            return None
        return cls(levels.to(torch.uint8).flatten(1), lowest[..., 0], distance[..., 0])

    @classmethod
    def joined(cls, parts: Sequence[Int4Weight]) -> Int4Weight:
        levels = [part._levels for part in parts if part._levels is not None]
        return cls(
            torch.cat(levels),
            torch.cat([part._lowest for part in parts]),
            torch.cat([part._distance for part in parts]),
        )

    @cached_property
    def _packed(self) -> tuple[Tensor, Tensor]:
        """Two levels a byte in the kernel's order, and per group and output (distance, the value of level 8)."""
        assert self._levels is not None
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(self._levels.int(), 1)
        self._levels = None
        middle = self._lowest + 8 * self._distance
        return packed, torch.stack([self._distance, middle], -1).transpose(0, 1).bfloat16().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """``x W^T``: (..., in) -> (..., out) bfloat16."""
        packed, scales = self._packed
        flat = x.reshape(-1, x.shape[-1]).bfloat16()
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, packed, GROUP, scales)
        return product.view(*x.shape[:-1], -1)


def few(x: Tensor) -> bool:
    """Whether ``x`` (..., in) has so few rows that reading the weights takes the time."""
    return x.numel() <= FEW * x.shape[-1]
