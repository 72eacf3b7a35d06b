"""A Llama's forward pass for CPUs, as few operations as it takes.

Weights stay where the transformers model has them: projections that read the same input are laid side by side in one
tensor, and the model's own modules become views of it. Per layer: two products fewer for q, k and v, one fewer for gate
and up; one rotation for queries and keys; grouped heads attend without being repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from pipeline.model.memory_layer import MemoryPass
from serve.int4 import few
from serve.int8 import Int8Linear, largest
from serve.kv_cache import KeyValueRows


def fits(model: nn.Module) -> bool:
    """Whether ``model`` is a Llama as published, on a CPU: a subclass or another MLP may compute something else."""
    return (
        type(model) is LlamaForCausalLM
        and model.device.type == "cpu"
        and model.config.hidden_act == "silu"
        and all(type(layer) is LlamaDecoderLayer and type(layer.mlp) is LlamaMLP for layer in model.model.layers)
    )


class LlamaForward:
    """As :class:`serve.forward.Forward`; the caller holds the backbone's lock."""

    def __init__(self, model: Any) -> None:
        self._embedding = model.model.embed_tokens
        self._rotary = model.model.rotary_emb
        self._layers = [Layer(layer) for layer in model.model.layers]
        self._norm = model.model.norm
        self._head = projection([model.lm_head])

    def __call__(
        self, ids: Tensor, positions: Tensor, bias: Tensor, cache: KeyValueRows, memory: MemoryPass | None
    ) -> Tensor:
        hidden = self._embedding(ids)  # (n, tokens, width)
        cos, sin = (table[:, :, None] for table in self._rotary(hidden, positions))  # (n, tokens, 1, d)
        half = sin.shape[-1] // 2
        turn = Turn(cos, torch.cat([-sin[..., :half], sin[..., half:]], -1), half)
        at = Memory(memory)
        for index, layer in enumerate(self._layers):
            hidden = layer.attend(hidden, turn, bias, cache, index)
            hidden = layer.feed_forward(hidden, at, index)
            at.address(hidden, index)
        logits: Tensor = self._head.of_normed(hidden[:, -1], self._norm)
        return logits


@dataclass(frozen=True)
class Turn:
    """Rotary positions: the halves (a, b) of each head become (a cos - b sin, b cos + a sin)."""

    cos: Tensor  # (n, tokens, 1, d)
    sin: Tensor  # the same, its first half negative
    half: int

    def __call__(self, x: Tensor) -> None:
        """In place."""
        swapped = x.roll(self.half, -1)
        x.mul_(self.cos).addcmul_(swapped, self.sin)


class Memory:
    """A memory pass asked layer by layer, where transformers' model is hooked."""

    def __init__(self, memory: MemoryPass | None) -> None:
        state = memory.state if memory is not None and memory.state.slots else None
        self._memory = memory
        self._key_layer = state.key_layer if state else -1
        self._value_layers = {layer: index for index, layer in enumerate(state.value_layers)} if state else {}

    def speaks_at(self, layer: int) -> bool:
        return layer in self._value_layers

    def write(self, output: Tensor, layer: int) -> Tensor:
        assert self._memory is not None
        return self._memory.write_into(output, self._value_layers[layer])

    def address(self, hidden: Tensor, layer: int) -> None:
        if layer == self._key_layer:
            assert self._memory is not None
            self._memory.address(hidden)


class Layer:
    """One decoder layer: h heads in g groups, each group with one key and value of width d."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._width = attention.head_dim
        self._scaling = attention.scaling
        self._groups = attention.config.num_key_value_heads
        self._heads = attention.config.num_attention_heads
        self._qkv = projection([attention.q_proj, attention.k_proj, attention.v_proj])
        self._o = projection([attention.o_proj])
        self._gate_up = projection([mlp.gate_proj, mlp.up_proj])
        self._down = projection([mlp.down_proj])
        self._before, self._between = layer.input_layernorm, layer.post_attention_layernorm

    def attend(self, hidden: Tensor, turn: Turn, bias: Tensor, cache: KeyValueRows, index: int) -> Tensor:
        n, tokens, _ = hidden.shape
        states = self._qkv.of_normed(hidden, self._before).view(n, tokens, -1, self._width)  # (n, tokens, h + 2 g, d)
        turn(states[:, :, : self._heads + self._groups])
        keys, values = cache.row_layers[index].write(states[:, :, self._heads :])
        queries = states[:, :, : self._heads]
        if tokens == 1:  # a group's heads stand where further tokens would: they see the same keys
            queries = queries.view(n, self._groups, -1, self._width)
            found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=self._scaling)
        else:
            found = F.scaled_dot_product_attention(
                queries.transpose(1, 2), keys, values, attn_mask=bias, scale=self._scaling, enable_gqa=True
            ).transpose(1, 2)
        return self._o.added(hidden, found.reshape(n, tokens, -1))

    def feed_forward(self, hidden: Tensor, memory: Memory, index: int) -> Tensor:
        gate, up = self._gate_up.of_normed(hidden, self._between).chunk(2, -1)
        inner = F.silu(gate).mul_(up)
        if memory.speaks_at(index):
            return hidden + memory.write(self._down(inner), index)
        return self._down.added(hidden, inner)


class Projection(Protocol):
    """A linear layer with what stands before or after it, so that no step is taken twice."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def of_normed(self, x: Tensor, norm: Any) -> Tensor: ...

    def added(self, residual: Tensor, x: Tensor) -> Tensor: ...


class FullProjection:
    """Weights of several ``nn.Linear`` in one tensor, of which theirs become views."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        weights = [part.weight.data for part in parts]
        biases = [part.bias.data for part in parts if part.bias is not None]
        self._weight = weights[0] if len(parts) == 1 else torch.cat(weights)
        self._bias = torch.cat(biases) if biases else None
        for part, rows in zip(parts, self._weight.split([len(weight) for weight in weights]), strict=True):
            part.weight.data = rows

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def of_normed(self, x: Tensor, norm: Any) -> Tensor:
        return self(_normed(x, norm))

    def added(self, residual: Tensor, x: Tensor) -> Tensor:
        return self(x).add_(residual)


class Int8Projection:
    """The scales of the normalisation and of the integers are one; the residual is added while they are applied."""

    def __init__(self, parts: Sequence[Int8Linear]) -> None:
        self._linear = parts[0] if len(parts) == 1 else Int8Linear.joined(parts)
        self._bias = self._linear.bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear.forward(x)

    def _in_four_bits(self, x: Tensor) -> bool:
        return self._linear.int4 is not None and few(x)

    def of_normed(self, x: Tensor, norm: Any) -> Tensor:
        if self._in_four_bits(x):
            return self._linear.forward(_normed(x, norm))
        flat = x.reshape(-1, x.shape[-1]).float()
        weighted = flat * norm.weight
        size = largest(weighted)
        length = torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
        root = length.square_().div_(flat.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
        result = self._linear.product(weighted, size).mul_(root.mul_(size))
        if self._bias is not None:
            result += self._bias
        return result.to(x.dtype).view(*x.shape[:-1], -1)

    def added(self, residual: Tensor, x: Tensor) -> Tensor:
        if self._in_four_bits(x):
            return self._linear.forward(x).add_(residual)
        flat = x.view(-1, x.shape[-1]).float()
        size = largest(flat)
        product = self._linear.product(flat, size)
        if self._bias is not None:
            residual = residual + self._bias
        return torch.addcmul(residual.view(product.shape), product, size).to(x.dtype).view(residual.shape)


def projection(parts: Sequence[nn.Linear | Int8Linear]) -> Projection:
    """The outputs of ``parts`` in a row."""
    if isinstance(parts[0], Int8Linear):
        return Int8Projection(parts)  # type: ignore[arg-type]  # quantise leaves no nn.Linear beside one
    return FullProjection(parts)  # type: ignore[arg-type]


def _normed(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
