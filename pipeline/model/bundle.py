"""A bundle: what one model version adds to its base weights, described by itself.

Folder: ``bundle.json`` (recipe, base digest, lineage, digest of the tensors) and ``bundle.safetensors``.
Lessons are not in it; they live in the event log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline.config import Recipe, parse_recipe
from pipeline.model.address import head_of
from pipeline.model.backbone import backbone_location, weights_digest
from pipeline.model.memory_layer import MemoryState
from pipeline.revision import revision

FORMAT = 1
HEADER, TENSORS = "bundle.json", "bundle.safetensors"


class BundleError(RuntimeError):
    """A bundle folder is damaged or does not belong to the weights at hand."""


@dataclass(frozen=True)
class Bundle:
    """One version of the answerer, apart from its base weights."""

    recipe: Recipe
    base_digest: str
    trained_through_seq: int = 0
    cycle: int = 0
    parent: int | None = None
    code: str = ""  # the revision of the code that made it
    tensors: dict[str, Tensor] = field(default_factory=dict)  # changed weights by parameter name
    memory: MemoryState | None = None
    router: dict[str, Tensor] = field(default_factory=dict)
    written: dict[str, Tensor] = field(default_factory=dict)  # what native memory layers were told, one conversation

    @classmethod
    def initial(cls, recipe: Recipe) -> Bundle:
        return cls(recipe, weights_digest(backbone_location(recipe.model.base)))

    def with_weights(self, model: nn.Module) -> Bundle:
        """This bundle with every weight of ``model`` that was trained; of shards, every rank has to call it."""
        return replace(self, tensors={**self.tensors, **trained_weights(model)})

    def without_lessons(self, lessons: Collection[str]) -> Bundle:
        """This bundle without the memory-layer slots of ``lessons``; changed ordinary weights stay as they are."""
        return self if self.memory is None else replace(self, memory=self.memory.without(lessons))

    def _named_tensors(self) -> dict[str, Tensor]:
        named = {f"weights.{name}": tensor for name, tensor in self.tensors.items()}
        named |= {f"router.{name}": tensor for name, tensor in self.router.items()}
        named |= {f"written.{name}": tensor for name, tensor in self.written.items()}
        if self.memory is not None:
            named |= {f"memory.{name}": tensor for name, tensor in self.memory.tensors().items()}
            if self.memory.head is not None:
                named |= {f"address.{name}": tensor for name, tensor in self.memory.head.tensors().items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(named.items())}

    def not_finite(self) -> list[str]:
        """The names of tensors with an infinite number, or with none: no bundle that is served may have one."""
        return [name for name, tensor in self._named_tensors().items() if not bool(tensor.isfinite().all())]

    def digest(self) -> str:
        """sha256 over names, shapes and bytes of all tensors."""
        return tensors_digest(self._named_tensors())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        named = self._named_tensors()
        header = {
            "format": FORMAT,
            "base_digest": self.base_digest,
            "trained_through_seq": self.trained_through_seq,
            "cycle": self.cycle,
            "parent": self.parent,
            "code": self.code or revision(),
            "memory": self.memory.header() if self.memory else None,
            "tensors_digest": tensors_digest(named),
            "recipe": self.recipe.model_dump(mode="json"),
        }
        save_file(named, folder / TENSORS)
        (folder / HEADER).write_text(json.dumps(header, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        header, named = _read(folder)
        memory = None
        if header["memory"] is not None:
            kept: dict[str, Any] = header["memory"] | _under("memory.", named)
            kept.setdefault("reach", torch.ones_like(kept["thresholds"]))  # before keys could come from a codebook
            head = _under("address.", named)  # none where keys are means of states
            kept |= {name: tuple(kept[name]) for name in ("slots", "value_layers")}
            memory = MemoryState(**kept, head=head_of(head) if head else None)
        return cls(
            recipe=parse_recipe(header["recipe"], origin=str(folder / HEADER)),
            base_digest=header["base_digest"],
            trained_through_seq=header["trained_through_seq"],
            cycle=header["cycle"],
            parent=header["parent"],
            code=header.get("code", "unknown"),  # bundles of before it was written down
            tensors=_under("weights.", named),
            memory=memory,
            router=_under("router.", named),
            written=_under("written.", named),
        )


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU, put together from its shards where there are any; then every rank has to call it."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().clone()


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight that training may have changed, by name; of shards, every rank has to call it."""
    return {name: whole(p) for name, p in model.named_parameters() if p.requires_grad}


def tensors_digest(named: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        named = load_file(folder / TENSORS)
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: {Path(error.filename or TENSORS).name} is missing") from None
    except json.JSONDecodeError as error:
        raise BundleError(f"{folder}: {HEADER} is damaged: {error}") from None
    except SafetensorError as error:
        raise BundleError(f"{folder}: {TENSORS} is damaged: {error}") from None
    if header.get("format") != FORMAT:
        raise BundleError(f"{folder}: bundle format {header.get('format')!r}, this version reads {FORMAT}")
    if tensors_digest(named) != header["tensors_digest"]:
        raise BundleError(f"{folder}: the tensors do not match their recorded digest; the folder is damaged")
    return header, named


def _under(prefix: str, named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
