"""The seam between the running rows and the model: one forward pass on a cache of rows.

``hf:`` names any causal model, and transformers runs them all. A Llama on a CPU, which the default model is, has a pass
of its own (:mod:`serve.llama`), because there transformers' generality costs more time than the arithmetic.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from pipeline.model.backbone import Backbone
from pipeline.model.memory_layer import MemoryPass, attached
from serve import llama
from serve.kv_cache import KeyValueRows


class Forward(Protocol):
    """Logits (n, vocabulary) of the last column of ``ids`` (n, tokens) at ``positions`` (n, tokens).

    ``bias`` (n, 1, tokens, length) is added to the attention's logits; ``cache`` is aimed at these rows and positions.
    """

    def __call__(
        self, ids: Tensor, positions: Tensor, bias: Tensor, cache: KeyValueRows, memory: MemoryPass | None
    ) -> Tensor: ...


class TransformersForward:
    """The model's own pass, with memory layers hooked in."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def __call__(
        self, ids: Tensor, positions: Tensor, bias: Tensor, cache: KeyValueRows, memory: MemoryPass | None
    ) -> Tensor:
        with attached(self._backbone.layers, memory):
            output = self._backbone.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=bias,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: Tensor = output.logits[:, -1]
        return logits


_LLAMAS: WeakKeyDictionary[nn.Module, llama.LlamaForward] = WeakKeyDictionary()  # bundles share a backbone's


def forward_of(backbone: Backbone) -> Forward:
    """The fastest pass that knows this model. Call it after the weights are what they shall be."""
    model = backbone.model
    if not llama.fits(model):
        return TransformersForward(backbone)
    with backbone.lock:
        if model not in _LLAMAS:
            _LLAMAS[model] = llama.LlamaForward(model)
        return _LLAMAS[model]
