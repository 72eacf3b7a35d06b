"""Linear layers with int8 weights, for CPUs: one scale per output channel, one per token of the input.

Integer products add up exactly, so a token's result does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

LARGEST = 127
ZERO = 128  # of the input, which oneDNN's kernels take unsigned
ROUNDED = torch.tensor(ZERO + 0.5)  # conversion to an integer cuts
VNNI = torch.cpu._is_vnni_supported()


class Int8Linear(nn.Module):
    """``y = (q(x) W8^T) s_x s_w + b`` with q(x) = round(x / s_x), s_x = max|x| / 127 per token.

    The scheme is LLM.int8()'s vector-wise quantisation without its outlier part (Dettmers et al. 2022). Where the CPU
    multiplies bytes (VNNI), oneDNN runs it on weights in its own order, else PyTorch's plain integer product.
    """

    weight: Tensor  # (out, in) int8
    scale: Tensor  # (out,)

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        full = linear.weight.detach().float()
        scale = full.abs().amax(1).clamp(min=1e-12) / LARGEST
        return cls((full / scale[:, None]).round_().to(torch.int8), scale, linear.bias)

    @classmethod
    def joined(cls, parts: Sequence[Int8Linear]) -> Int8Linear:
        """The outputs of ``parts`` in a row; their weights become views of the new one's."""
        weight = torch.cat([part.weight for part in parts])
        biases = [part.bias for part in parts if part.bias is not None]
        for part, rows in zip(parts, weight.split([len(part.scale) for part in parts]), strict=True):
            part.weight = rows
        return cls(weight, torch.cat([part.scale for part in parts]), torch.cat(biases) if biases else None)

    @cached_property
    def _packed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights in oneDNN's order, their scales (with the input's 1 / 127) and zero points; made on first use."""
        packed: Tensor = torch.ops.onednn.qlinear_prepack(self.weight, None)
        return packed, self.scale / LARGEST, torch.zeros(len(self.scale), dtype=torch.long)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).float()
        size = flat.abs().amax(-1, keepdim=True).clamp_(min=1e-12)
        product = self._bytes(flat, size) if VNNI else self._plain(flat, size)
        result = product.mul_(size).to(x.dtype)
        if self.bias is not None:
            result = result + self.bias
        return result.view(*x.shape[:-1], -1)

    def _bytes(self, x: Tensor, size: Tensor) -> Tensor:
        packed, scale, zeros = self._packed
        unsigned = torch.addcmul(ROUNDED, x, LARGEST / size).to(torch.uint8)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, ZERO, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product

    def _plain(self, x: Tensor, size: Tensor) -> Tensor:
        signed = (x * (LARGEST / size)).round_().to(torch.int8)
        return torch._int_mm(signed, self.weight.t()) * (self.scale / LARGEST)


def quantise(model: nn.Module) -> None:
    """Replace every ``nn.Linear`` in place; embeddings, norms and attention keep their type."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear.of(child))
