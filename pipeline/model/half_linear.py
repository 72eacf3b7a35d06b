"""Linear maps with half-precision weights for x86 CPUs, where a few tokens wait for the weights to arrive.

One question is a dozen tokens: nearly all of its time goes into reading a weight for each few products. Half precision
halves what is read; products and sums stay in single precision. It moves a sentence's vector by about 1e-4, as much as
the half precision in which vectors are kept. With hundreds of tokens both take the same time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

ENGINES = ("fbgemm", "x86")  # PyTorch's names for the library (FBGEMM) that has this product


class HalfLinear(nn.Module):
    """``y = x W16^T + b``, with the weights in FBGEMM's order."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return result


def replace_linears(model: nn.Module, made_of: Callable[[nn.Linear], nn.Module]) -> None:
    """Every ``nn.Linear`` in place; embeddings, norms and attention keep their type."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, made_of(child))


def halve(model: nn.Module) -> None:
    """Half-precision weights for a model that only answers, where the CPU has them; elsewhere it stays as it is."""
    if torch.backends.quantized.engine in ENGINES and next(model.parameters()).device.type == "cpu":
        replace_linears(model, HalfLinear)
