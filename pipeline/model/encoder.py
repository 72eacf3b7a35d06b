"""First-stage encoders: anything to a unit vector.

The memory asks only for :class:`Encoder`; text is one implementation, an image or an event encoder would be another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.model.assets import encoder_folder
from pipeline.model.half_linear import halve

MAX_TOKENS = 128  # a question is a sentence or two; longer texts keep their beginning
BATCH = 64

Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """Inputs of one kind to unit vectors, so that a dot product is a cosine."""

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    def encode(self, inputs: Sequence[Any]) -> Vectors:
        """(n, dimension) float32, each row of length 1."""
        ...


class TextEncoder:
    """A BERT-style sentence encoder: the mean of the last layer's token states, scaled to length 1."""

    def __init__(self, name: str, model: Any, tokenizer: Any, device: str = "cpu") -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.model = model.to(device).eval()
        halve(self.model)
        self.device = device

    @property
    def dimension(self) -> int:
        return int(self.model.config.hidden_size)

    def encode(self, inputs: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(inputs), self.dimension), dtype=np.float32)
        order = sorted(range(len(inputs)), key=lambda row: len(inputs[row]))  # like lengths together: less padding
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            vectors[rows] = self._encode_batch([inputs[row] for row in rows])
        return vectors

    @torch.inference_mode()
    def _encode_batch(self, texts: list[str]) -> Vectors:
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        states = self.model(**batch).last_hidden_state  # (batch, tokens, dimension)
        mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)  # (batch, tokens, 1)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        unit = torch.nn.functional.normalize(mean.float(), dim=-1)
        result: Vectors = unit.cpu().numpy()
        return result


def weights_location(name: str) -> str:
    """Where transformers finds the weights of ``package:minilm`` or ``hf:<id or path>``."""
    return name.removeprefix("hf:") if name.startswith("hf:") else str(encoder_folder(name))


def load_encoder(name: str = "package:minilm", threads: int | None = None, device: str = "auto") -> TextEncoder:
    """The text encoder called ``name``; ``threads`` sets torch's thread count for the whole process."""
    from transformers import AutoModel, AutoTokenizer

    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    location = weights_location(name)
    model = AutoModel.from_pretrained(location, dtype=torch.float32, attn_implementation="sdpa")
    return TextEncoder(name, model, AutoTokenizer.from_pretrained(location), device)
