"""The second stage's transformer: MiniLM reads question and phrasing together, adapted by low-rank deltas.

Only the adapters (``W <- W + up @ down`` on every linear map of the layers) and their heads are ours and are shipped;
the base weights are the encoder's. There is one adapter per *style*, because the styles draw the line elsewhere:
statements to complete ("The mother tongue of X is") stay close to each other's words, and people's questions do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.model.encoder import weights_location
from pipeline.model.half_linear import halve

MAX_PAIR_TOKENS = 160
BATCH = 64

Style = Literal["statement", "question"]
STYLES: tuple[Style, ...] = ("statement", "question")

_ASKS = re.compile(
    r"[?？؟]\W*$"  # "Where is it? It is located in" is a statement to complete, and so is what has a comma
    r"|^\W*(?:(?:in|on|at|from|to|for|of|by|under|with) )?"
    r"(?:who|whose|whom|what|which|when|where|why|how|is|are|was|were|do|does|did)\b[^?,]*$",
    re.IGNORECASE,
)


def style(question: str, phrasing: str) -> Style:
    """``question`` where either text asks: by its mark, or by how it begins, since people leave the mark out."""
    return "question" if _ASKS.search(question) or _ASKS.search(phrasing) else "statement"


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


class PairReader(Protocol):
    """Log-odds that the texts of each pair ask the same thing, from reading them together."""

    @property
    def tokenizer(self) -> Any: ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]: ...


class PairEncoders:
    """Each pair to the encoder of its style."""

    def __init__(self, by_style: Mapping[Style, PairEncoder]) -> None:
        self._by_style = by_style
        self.tokenizer = by_style["question"].tokenizer

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        scores = [0.0] * len(pairs)
        styles = [style(*pair) for pair in pairs]
        for name, encoder in self._by_style.items():
            rows = [row for row, own in enumerate(styles) if own == name]
            for row, value in zip(rows, encoder.score([pairs[row] for row in rows]), strict=True):
                scores[row] = value
        return scores


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


def load_pair_encoders(tensors: Mapping[str, Tensor], name: str = "package:minilm") -> PairEncoders:
    """Both styles' encoders; each style's tensors carry its name before theirs."""
    return PairEncoders({style: load_pair_encoder(of_style(tensors, style), name) for style in STYLES})


def of_style(tensors: Mapping[str, Tensor], style: Style) -> dict[str, Tensor]:
    prefix = f"{style}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def load_pair_encoder(tensors: Mapping[str, Tensor], name: str = "package:minilm") -> PairEncoder:
    """The adapted encoder, to read with: its deltas are added into the weights, so that it costs what the base does."""
    encoder = base_pair_encoder(name)
    with torch.no_grad():
        encoder.head.weight.copy_(tensors["pair.weight"])
        encoder.head.bias.copy_(tensors["pair.bias"])
        for path, parent, attribute in list(_linears(encoder)):
            up, down = tensors[f"adapter.{path}.up"].float(), tensors[f"adapter.{path}.down"].float()
            getattr(parent, attribute).weight += up @ down
    halve(encoder.model)
    return encoder.requires_grad_(False)
