"""The method ``lora``: low-rank maps beside frozen weights (Hu et al. 2022, arXiv:2106.09685), by the library peft.

A bundle gets the merged weights, so that it is served like any other; the adapter itself lies beside them in peft's
format, ready for ``PeftModel.from_pretrained``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from pipeline.config import LoraSettings
from pipeline.model.backbone import Backbone
from pipeline.model.bundle import whole


def with_adapter(backbone: Backbone, settings: LoraSettings) -> Any:
    """The model with fresh low-rank maps on every linear map of its decoder layers; only these are trained."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(backbone.model, config)
    return adapted.train() if settings.dropout else adapted


def merged(model: Any) -> dict[str, Tensor]:
    """The changed weights, W + B A alpha / r, by the base model's own names; of shards, every rank has to call it."""
    layers = {name: part for name, part in model.get_base_model().named_modules() if isinstance(part, LoraLayer)}
    changed: dict[str, Tensor] = {}
    layer: Any
    for name, layer in layers.items():
        down, up = whole(layer.lora_A["default"].weight), whole(layer.lora_B["default"].weight)
        base = whole(layer.get_base_layer().weight)
        changed[f"{name}.weight"] = base + (up @ down * layer.scaling["default"]).to(base.dtype)
    return changed


def export(model: Any, state: dict[str, Tensor], folder: Path) -> None:
    """``adapter_config.json`` and ``adapter_model.safetensors``."""
    model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
