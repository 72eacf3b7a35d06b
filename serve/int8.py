"""Linear layers with int8 weights, for CPUs: one scale per output channel, one per token of the input.

Integer products add up exactly, so a token's result does not depend on its company in the batch; where a few rows read
four bits instead (:mod:`serve.int4`), it depends on how many rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from pipeline.model.half_linear import replace_linears
from serve.int4 import Int4Weight, few

LARGEST = 127
ZERO = 128  # oneDNN takes the input unsigned
SIGN = torch.tensor(ZERO, dtype=torch.uint8)
HALF_UP = torch.tensor(ZERO + 0.5)  # conversion to an integer cuts
BYTE_PRODUCTS = torch.cpu._is_vnni_supported()


class Int8Linear(nn.Module):
    """``y = (q(x) W8^T) s_x s_w + b`` with q(x) = round(x / s_x), s_x = max|x| / 127 per token.

    The scheme is LLM.int8()'s vector-wise quantisation without its outlier part (Dettmers et al. 2022). Where the CPU
    multiplies bytes (VNNI), oneDNN runs it on weights in its own order; for one token alone, and elsewhere, PyTorch's
    plain integer product is faster. Both get the same integers. A few tokens use four bits where the weights have no
    more (:mod:`serve.int4`).
    """

    weight: Tensor  # (out, in) int8
    scale: Tensor  # (out,), over 127: what an integer product of largest inputs stands for

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor | None = None, int4: Int4Weight | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias
        self.int4 = int4

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        full = linear.weight.detach().float()
        scale = full.abs().amax(1).clamp(min=1e-12) / LARGEST
        weight = (full / scale[:, None]).round_().to(torch.int8)
        return cls(weight, scale / LARGEST, linear.bias, Int4Weight.of(full))

    @classmethod
    def joined(cls, parts: Sequence[Int8Linear]) -> Int8Linear:
        """The outputs of ``parts`` in a row; their weights become views of the new one's, which takes their int4."""
        weight = torch.cat([part.weight for part in parts])
        biases = [part.bias for part in parts if part.bias is not None]
        for part, rows in zip(parts, weight.split([len(part.scale) for part in parts]), strict=True):
            part.weight = rows
        found = [part.int4 for part in parts if part.int4 is not None]
        int4 = Int4Weight.joined(found) if len(found) == len(parts) else None
        for part in parts:
            part.int4 = None
        return cls(weight, torch.cat([part.scale for part in parts]), torch.cat(biases) if biases else None, int4)

    @cached_property
    def _transposed(self) -> Tensor:
        return self.weight.t()

    @cached_property
    def _packed(self) -> tuple[Tensor, Tensor]:
        """Weights in oneDNN's order and their zero points; made on first use."""
        packed: Tensor = torch.ops.onednn.qlinear_prepack(self.weight, None)
        return packed, torch.zeros(len(self.scale), dtype=torch.long)

    def forward(self, x: Tensor) -> Tensor:
        if self.int4 is not None and few(x):
            output = self.int4(x).to(x.dtype)
            return output if self.bias is None else output + self.bias
        flat = x.reshape(-1, x.shape[-1]).float()
        size = largest(flat)
        result = self.product(flat, size).mul_(size).to(x.dtype)
        if self.bias is not None:
            result = result + self.bias
        return result.view(*x.shape[:-1], -1)

    def product(self, x: Tensor, size: Tensor) -> Tensor:
        """(n, in) float32 and its :func:`largest` -> (n, out) float32, which is the output over ``size``, no bias."""
        unsigned = torch.addcmul(HALF_UP, x, size.reciprocal(), value=LARGEST).to(torch.uint8)
        if len(x) == 1 or not BYTE_PRODUCTS:
            signed = unsigned.bitwise_xor_(SIGN).view(torch.int8)  # minus ZERO
            return torch._int_mm(signed, self._transposed) * self.scale
        packed, zeros = self._packed
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, ZERO, packed, self.scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return found


def largest(x: Tensor) -> Tensor:
    """max|x| of each token: (n, in) -> (n, 1). A token of zeros gets zeros, whatever its integers are."""
    return x.abs().amax(-1, keepdim=True)


def quantise(model: nn.Module) -> None:
    """Replace every ``nn.Linear`` in place."""
    replace_linears(model, Int8Linear.of)
