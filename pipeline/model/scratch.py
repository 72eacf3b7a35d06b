"""``scratch:<size>``: decoders of our own, built from nothing: RMSNorm, rotary positions, SwiGLU, bytes, memory layers.

They are transformers' Llama with memory layers beside the MLPs of the configured layers, so that whatever loads a
Hugging Face model loads them: a trained one is ``hf:<folder>``. ``scratch:<size>`` has slots;
``scratch:<size>:fast_weights`` and ``scratch:<size>:none`` are the same decoder with the other memory, or with none.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from pipeline.model.assets import cache_root
from pipeline.model.native_layer import NativeMemory, NativeSettings

KINDS = ("slots", "fast_weights", "none")
SEED = 0  # of the weights that nothing has trained yet
LAYOUT = 2  # of the parameters: another one is built anew, whatever the user's cache holds
START, END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ScratchError(ValueError):
    """``model.base`` names no decoder that can be built."""


@dataclass(frozen=True)
class Size:
    width: int
    feed_forward: int
    layers: int
    heads: int
    memory_layers: tuple[int, ...]

    @property
    def d_head(self) -> int:
        """Also the width of a memory layer's addresses and values."""
        return self.width // self.heads


SIZES = {
    "tiny": Size(width=64, feed_forward=128, layers=2, heads=2, memory_layers=(0,)),  # 0.1 M parameters
    "small": Size(width=384, feed_forward=1024, layers=8, heads=6, memory_layers=(0, 4)),  # 15 M
    "base": Size(width=768, feed_forward=2048, layers=12, heads=12, memory_layers=(0, 4, 8)),  # 87 M
}


class MemoryLlamaConfig(LlamaConfig):
    """``memory``: the fields of ``NativeSettings``; ``None`` for a plain decoder."""

    model_type = "memory_llama"
    memory: dict[str, Any] | None = None


class MemoryMlp(LlamaMLP):
    """A decoder layer's MLP with a memory layer beside it."""

    def __init__(self, config: MemoryLlamaConfig, layer: int) -> None:
        super().__init__(config)
        assert config.memory is not None
        self.memory = NativeMemory(config.hidden_size, layer, NativeSettings(**config.memory))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.memory(x)


class MemoryLlamaForCausalLM(LlamaForCausalLM):
    config_class = MemoryLlamaConfig

    def __init__(self, config: MemoryLlamaConfig) -> None:
        super().__init__(config)
        for layer in config.memory["layers"] if config.memory is not None else ():
            self.model.layers[layer].mlp = MemoryMlp(config, layer)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):  # at first a token's own say outweighs what untrained attention adds
            nn.init.normal_(module.weight)


AutoConfig.register("memory_llama", MemoryLlamaConfig)
AutoModelForCausalLM.register(MemoryLlamaConfig, MemoryLlamaForCausalLM)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus the two marks of a chat turn."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START, END])
    return _chatting(tokenizer)


def trained_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ``vocabulary`` tokens at most: the 256 bytes, the two marks, and merges learned on texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[START, END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _chatting(tokenizer)


def _chatting(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, chat_template=CHAT_TEMPLATE
    )


def scratch_config(base: str, tokenizer: PreTrainedTokenizerFast | None = None) -> MemoryLlamaConfig:
    """The configuration that ``scratch:<size>[:<kind>]`` names; over bytes, or over the tokens of ``tokenizer``."""
    name, _, kind = base.removeprefix("scratch:").partition(":")
    kind = kind or "slots"
    if name not in SIZES or kind not in KINDS:
        raise ScratchError(
            f"model.base = {base!r}: write scratch:<size> or scratch:<size>:<kind> with a size of {', '.join(SIZES)} "
            f"and a kind of {', '.join(KINDS)}"
        )
    size, tokenizer = SIZES[name], tokenizer or byte_tokenizer()
    memory = None if kind == "none" else asdict(NativeSettings(kind, size.memory_layers, size.d_head))  # type: ignore[arg-type]
    return MemoryLlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
        memory=memory,
    )


def build(base: str, tokenizer: PreTrainedTokenizerFast | None = None) -> MemoryLlamaForCausalLM:
    """The decoder with untrained weights, the same ones every time."""
    config = scratch_config(base, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return MemoryLlamaForCausalLM(config)


def scratch_folder(base: str) -> Path:
    """A folder that transformers loads, in the user's cache: built on first use."""
    config = scratch_config(base)
    recipe = json.dumps([config.to_dict(), LAYOUT, SEED, torch.__version__], sort_keys=True, default=str)
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    target = cache_root() / f"{base.replace(':', '-')}-{digest}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
        build(base).save_pretrained(partial)
        byte_tokenizer().save_pretrained(partial)
        try:
            partial.rename(target)  # visible whole or not at all
        except OSError:  # another process finished first
            shutil.rmtree(partial)
    return target
