"""The backbone: a causal language model with its tokenizer, and the prompt's way into tokens."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config import ModelSettings
from pipeline.evaluate.protocol import Message
from pipeline.model.assets import backbone_folder, file_digest
from pipeline.model.scratch import scratch_folder


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: token ids, and which of them are the question's."""

    ids: tuple[int, ...]
    span: tuple[bool, ...]

    @property
    def opening(self) -> int:
        """How many tokens stand before the question; 0 where the template does not show it as it is."""
        return self.span.index(True) if True in self.span else 0


@dataclass(frozen=True)
class Batch:
    """Left-padded prompts: (batch, tokens)."""

    ids: Tensor
    mask: Tensor
    span: Tensor

    @property
    def positions(self) -> Tensor:
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    def followed_by(self, ids: Tensor) -> Batch:
        """With ``ids`` (batch, width) after the prompts, none of them a question's."""
        there = torch.ones_like(ids)
        parts = ((self.ids, ids), (self.mask, there), (self.span, there == 0))
        return Batch(*(torch.cat(part, dim=1) for part in parts))


@dataclass(frozen=True)
class Opening:
    """How a batch begins, run once for all of its rows. ``cache`` is ``None`` where nothing is shared."""

    tokens: int = 0
    cache: Any = None

    @classmethod
    def of(cls, backbone: Backbone, prompts: Sequence[Prompt]) -> Opening:
        """What ``prompts`` share before their questions begin: memory layers look at the questions' tokens alone."""
        shared = min(common_length([prompt.ids for prompt in prompts]), *(prompt.opening for prompt in prompts))
        if len(prompts) == 1 or shared == 0:
            return cls()
        ids = torch.tensor([prompts[0].ids[:shared]], device=backbone.device)
        cache = backbone.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(len(prompts))
        return cls(shared, cache)

    def rest(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return [Prompt(prompt.ids[self.tokens :], prompt.span[self.tokens :]) for prompt in prompts]

    def mask(self, batch: Batch) -> Tensor:
        """Of a batch that follows, with what it follows: (batch, tokens)."""
        return torch.cat([batch.mask.new_ones(len(batch.ids), self.tokens), batch.mask], dim=1)

    def positions(self, batch: Batch) -> Tensor:
        """Of its own tokens."""
        return self.tokens + batch.positions

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Of one forward pass over a batch that follows."""
        return {
            "input_ids": batch.ids,
            "attention_mask": self.mask(batch),
            "position_ids": self.positions(batch),
            "past_key_values": self.cache,
            "use_cache": self.cache is not None,
        }


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """Of the beginning that all rows share."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


class _ReachedError(Exception):
    """Carries a layer's output out of a forward pass whose upper layers nobody needs."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Backbone:
    """Weights and tokenizer. One model may serve several bundles, so whoever runs it holds ``lock``."""

    def __init__(self, model: Any, tokenizer: Any, digest: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.digest = digest
        self.lock = threading.RLock()

    @classmethod
    def load(cls, settings: ModelSettings) -> Backbone:
        folder = backbone_location(settings.base)
        device = pick_device(settings)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=pick_dtype(settings, device))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(model.to(device).requires_grad_(False), tokenizer, weights_digest(folder))

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, wherever this architecture keeps them."""
        stacks = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return max(stacks, key=len)

    @property
    def end_token(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """Render messages with the model's chat template; the span covers the last user message."""
        text = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        question = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        begin = text.rfind(question.strip())
        end = begin + len(question.strip())
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        span = tuple(b < end and e > begin for b, e in encoded["offset_mapping"])
        return Prompt(tuple(encoded["input_ids"]), span)

    def states(self, batch: Batch, layer: int, opening: Opening | None = None) -> Tensor:
        """States (batch, tokens, d) after decoder layer ``layer``; the layers above it do not run.

        ``opening``: what the batch follows, for one pass.
        """

        def stop(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            raise _ReachedError(output if isinstance(output, Tensor) else output[0])

        handle = self.layers[layer].register_forward_hook(stop)
        try:
            self.model(**(opening or Opening()).inputs(batch))
        except _ReachedError as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise AssertionError("a decoder runs through all of its layers")

    def opened(self, prompts: Sequence[Prompt], *, share: bool = True) -> tuple[Opening, Batch]:
        """What the prompts share, which has run, and what follows it in each; without ``share``, nothing and all."""
        opening = Opening.of(self, prompts) if share else Opening()
        return opening, self.batch(opening.rest(prompts))

    def answer_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def batch(self, prompts: Sequence[Prompt]) -> Batch:
        width = max(len(p.ids) for p in prompts)
        pad = [width - len(p.ids) for p in prompts]
        ids = torch.tensor([[self.end_token] * n + list(p.ids) for n, p in zip(pad, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * len(p.ids) for n, p in zip(pad, prompts, strict=True)])
        span = torch.tensor([[False] * n + list(p.span) for n, p in zip(pad, prompts, strict=True)])
        return Batch(ids.to(self.device), mask.to(self.device), span.to(self.device))


def backbone_location(base: str) -> Path | str:
    """What transformers loads for ``model.base``."""
    kind, _, name = base.partition(":")
    if kind == "scratch":
        return scratch_folder(base)
    return backbone_folder(base) if kind == "package" else name


def weights_digest(location: Path | str) -> str:
    """sha256 over the safetensors files of a folder (a hub id is its own digest: the hub pins it by revision)."""
    folder = Path(location)
    if not folder.is_dir():
        return f"hub:{location}"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"model.base: {folder} holds no *.safetensors file; other weight formats are refused")
    digests = [file_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def pick_device(settings: ModelSettings) -> torch.device:
    if settings.device != "auto":
        return torch.device(settings.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    if settings.dtype != "auto":
        return torch.float32 if settings.dtype == "float32" else torch.bfloat16
    return torch.bfloat16 if device.type == "cuda" else torch.float32
