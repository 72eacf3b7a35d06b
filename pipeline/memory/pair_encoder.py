"""The second stage's transformer: MiniLM reads question and phrasing together, adapted by low-rank deltas.

Only the adapter (``W <- W + up @ down`` on every linear map of the layers) and the head are ours and are shipped; the
base weights are the encoder's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.encoder import weights_location

MAX_PAIR_TOKENS = 160
BATCH = 64


class LowRank(nn.Module):
    """A frozen linear map plus a trainable low-rank one, which starts at zero."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x) + (x @ self.down.T) @ self.up.T
        return result


class PairEncoder(nn.Module):
    """(question, phrasing) pairs to log-odds that they ask the same thing."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.head = nn.Linear(4 * model.config.hidden_size, 1)

    def tokens(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        left, right = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        batch = self.tokenizer(
            left, right, padding=True, truncation=True, max_length=MAX_PAIR_TOKENS, return_tensors="pt"
        )
        return {name: tensor.to(self.head.weight.device) for name, tensor in batch.items()}

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        states = self.model(**batch).last_hidden_state  # (pairs, tokens, d)
        seen = batch["attention_mask"].to(states.dtype)
        second = batch["token_type_ids"].to(states.dtype)
        left, right = _mean(states, seen * (1 - second)), _mean(states, seen * second)  # (pairs, d)
        both = torch.cat([left, right, (left - right).abs(), left * right], dim=-1)
        result: Tensor = self.head(both).squeeze(-1)  # (pairs,)
        return result

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        scores = [0.0] * len(pairs)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            for row, value in zip(rows, self(self.tokens([pairs[row] for row in rows])).tolist(), strict=True):
                scores[row] = value
        return scores


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def base_pair_encoder(name: str = "package:minilm") -> PairEncoder:
    """The encoder's weights, not yet adapted."""
    from transformers import AutoModel, AutoTokenizer

    location = weights_location(name)
    model = AutoModel.from_pretrained(location, dtype=torch.float32, attn_implementation="sdpa")
    return PairEncoder(model, AutoTokenizer.from_pretrained(location)).eval()


def _linears(encoder: PairEncoder) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, parent and attribute of every linear map in the transformer's layers."""
    modules = dict(encoder.model.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.Linear) and ".layer." in f".{name}":
            parent, _, attribute = name.rpartition(".")
            yield name, modules[parent], attribute


def make_trainable(encoder: PairEncoder, rank: int) -> list[nn.Parameter]:
    for _, parent, attribute in list(_linears(encoder)):
        setattr(parent, attribute, LowRank(getattr(parent, attribute), rank))
    return [parameter for parameter in encoder.parameters() if parameter.requires_grad]


def restore_adapter(encoder: PairEncoder, tensors: Mapping[str, Tensor]) -> None:
    """Go on training from a saved adapter: its deltas into the maps that :func:`make_trainable` has put in place."""
    with torch.no_grad():
        encoder.head.weight.copy_(tensors["pair.weight"])
        encoder.head.bias.copy_(tensors["pair.bias"])
        for name, module in encoder.model.named_modules():
            if isinstance(module, LowRank):
                module.down.copy_(tensors[f"adapter.{name}.down"])
                module.up.copy_(tensors[f"adapter.{name}.up"])


def adapter_tensors(encoder: PairEncoder) -> dict[str, Tensor]:
    """What was trained, in half precision: ``down`` and ``up`` of each map, and the head."""
    tensors = {"pair.weight": encoder.head.weight, "pair.bias": encoder.head.bias}
    for name, module in encoder.model.named_modules():
        if isinstance(module, LowRank):
            tensors |= {f"adapter.{name}.down": module.down, f"adapter.{name}.up": module.up}
    return {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()}


def load_pair_encoder(tensors: Mapping[str, Tensor], name: str = "package:minilm") -> PairEncoder:
    """The adapted encoder, its deltas added into the weights so that reading costs no more than the base."""
    encoder = base_pair_encoder(name)
    with torch.no_grad():
        encoder.head.weight.copy_(tensors["pair.weight"])
        encoder.head.bias.copy_(tensors["pair.bias"])
        for path, parent, attribute in list(_linears(encoder)):
            up, down = tensors[f"adapter.{path}.up"].float(), tensors[f"adapter.{path}.down"].float()
            getattr(parent, attribute).weight += up @ down
    return encoder.requires_grad_(False)
