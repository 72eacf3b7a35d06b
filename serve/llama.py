"""A Llama's forward pass for CPUs, as few operations as it takes.

Weights stay where the transformers model has them: projections that read the same input are laid side by side in one
tensor, and the model's own modules become views of it. Per layer: two products fewer for q, k and v, one fewer for gate
and up; one rotation for queries and keys; grouped heads attend without being repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from pipeline.model.memory_layer import MemoryPass
from serve.int8 import Int8Linear
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
        self._head = model.lm_head

    def __call__(
        self, ids: Tensor, positions: Tensor, bias: Tensor, cache: KeyValueRows, memory: MemoryPass | None
    ) -> Tensor:
        hidden = self._embedding(ids)  # (n, tokens, width)
        cos, sin = (table[:, :, None] for table in self._rotary(hidden, positions))  # (n, tokens, 1, d)
        at = Memory(memory)
        for index, layer in enumerate(self._layers):
            hidden = hidden + layer.attend(hidden, cos, sin, bias, cache, index)
            hidden.add_(at.write(layer.feed_forward(hidden), index))
            at.address(hidden, index)
        logits: Tensor = self._head(_normed(hidden[:, -1], self._norm))
        return logits


class Memory:
    """A memory pass asked layer by layer, where transformers' model is hooked."""

    def __init__(self, memory: MemoryPass | None) -> None:
        state = memory.state if memory is not None and memory.state.slots else None
        self._memory = memory
        self._key_layer = state.key_layer if state else -1
        self._value_layers = {layer: index for index, layer in enumerate(state.value_layers)} if state else {}

    def write(self, output: Tensor, layer: int) -> Tensor:
        if layer not in self._value_layers:
            return output
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
        self._qkv = side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
        self._o = attention.o_proj
        self._gate_up = side_by_side([mlp.gate_proj, mlp.up_proj])
        self._down = mlp.down_proj
        self._before, self._between = layer.input_layernorm, layer.post_attention_layernorm

    def attend(self, hidden: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, cache: KeyValueRows, index: int) -> Tensor:
        n, tokens, _ = hidden.shape
        states = self._qkv(_normed(hidden, self._before)).view(n, tokens, -1, self._width)  # (n, tokens, h + 2 g, d)
        split = self._heads + self._groups
        turned = _turned(states[:, :, :split], cos, sin)
        keys, values = cache.row_layers[index].write(turned[:, :, self._heads :], states[:, :, split:])
        queries = turned[:, :, : self._heads]
        if tokens == 1:  # a group's heads stand where further tokens would: they see the same keys
            queries = queries.reshape(n, self._groups, -1, self._width)
            found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=self._scaling)
        else:
            found = F.scaled_dot_product_attention(
                queries.transpose(1, 2), keys, values, attn_mask=bias, scale=self._scaling, enable_gqa=True
            ).transpose(1, 2)
        attended: Tensor = self._o(found.reshape(n, tokens, -1))
        return attended

    def feed_forward(self, hidden: Tensor) -> Tensor:
        gate, up = self._gate_up(_normed(hidden, self._between)).chunk(2, -1)
        output: Tensor = self._down(F.silu(gate).mul_(up))
        return output


def side_by_side(parts: Sequence[nn.Linear | Int8Linear]) -> nn.Module:
    """One linear layer whose outputs are those of ``parts`` in a row; their weights become views of its own."""
    if isinstance(parts[0], Int8Linear):
        return Int8Linear.joined(parts)  # type: ignore[arg-type]  # quantise leaves no nn.Linear beside one
    joined = nn.Linear(1, 1, bias=False, device="meta")
    joined.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
    if biases := [part.bias for part in parts if part.bias is not None]:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    for part, rows in zip(parts, joined.weight.split([len(part.weight) for part in parts]), strict=True):
        part.weight.data = rows
    return joined


def _normed(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: the halves (a, b) of each head become (a cos - b sin, b cos + a sin)."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned
