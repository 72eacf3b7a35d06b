"""Linear layers with int8 weights, for CPUs: one scale per output channel, one per token of the input.

Integer products add up exactly, so a token's result does not depend on what else is in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127


class Int8Linear(nn.Module):
    """``y = (q(x) W8^T) s_x s_w + b`` with q(x) = round(x / s_x), s_x = max|x| / 127 per token.

    The scheme is LLM.int8()'s vector-wise quantisation without its outlier part (Dettmers et al. 2022).
    """

    weight: Tensor  # (in, out) int8, transposed as torch._int_mm wants it
    scale: Tensor  # (out,)

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        full = linear.weight.detach().float()  # (out, in)
        scale = full.abs().amax(1).clamp(min=1e-12) / LARGEST
        quantised = (full / scale[:, None]).round_().to(torch.int8)
        self.register_buffer("weight", quantised.t())
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        size = torch.linalg.vector_norm(flat, ord=float("inf"), dim=-1, keepdim=True, dtype=torch.float32)
        size = size.clamp_(min=1e-12).div_(LARGEST)
        product = torch._int_mm((flat / size).round_().to(torch.int8), self.weight)
        result = (product * size).mul_(self.scale).to(x.dtype)
        if self.bias is not None:
            result = result + self.bias
        return result.view(*x.shape[:-1], -1)


def quantise(model: nn.Module) -> None:
    """Replace every ``nn.Linear`` in place; embeddings, norms and attention keep their type."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
