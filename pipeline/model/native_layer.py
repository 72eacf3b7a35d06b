"""Memory layers that a decoder is born with: they are written while the model reads, by equation 3 and nothing else.

Token t-1 asks the memory with its address; token t is what really came. So token t writes its own value under the
address of token t-1: theta <- theta + rate * (error * input), where the error is what the memory said too little and
the input is the query that it was asked with. Both kinds share everything but the memory itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.model.delta_rule import chunked
from pipeline.model.slots import Reading, Slots

Kind = Literal["slots", "fast_weights"]
REMEMBERS = 6.0  # added to the decay's logit: an untrained layer keeps 99.8 % a token
WRITES = 1.0  # added to the rate's logit: an untrained layer writes every token, and training makes it choose


@dataclass(frozen=True)
class NativeSettings:
    """Plain data, kept in the model's own configuration."""

    kind: Kind
    layers: Sequence[int]  # decoder layers, from 0
    d: int  # width of addresses and values
    kernel: int = 3  # tokens that one address speaks of
    threshold: float = 0.95  # similarity at or below which a slot yields to the null slot
    temperature: float = 0.01
    top_k: int = 8
    floor: float = 0.5  # a token that would write less than this opens no slot

    @property
    def reading(self) -> Reading:
        return Reading(self.threshold, self.temperature, self.top_k)


@dataclass
class Tail:
    """The end of what a layer has seen of the running segment: inputs for the next address, and the last address."""

    inputs: Tensor  # (batch, kernel - 1, width)
    address: Tensor  # (batch, 1, d), zero before the first token


@dataclass
class Session:
    """What one batch of conversations has been told so far, by decoder layer.

    ``segment`` starts the next text: attention cannot see the earlier ones, the memory holds what they said.
    """

    states: dict[int, Slots | Tensor] = field(default_factory=dict)  # fast weights: (batch, d, d)
    writes: bool = True
    mask: Tensor | None = None  # (batch, tokens) of the segment's first forward pass, where it has padding
    tails: dict[int, Tail] = field(default_factory=dict)
    rates: dict[int, Tensor] = field(default_factory=dict)  # (batch, tokens) of the last forward pass

    def segment(self, *, writes: bool = True, mask: Tensor | None = None) -> Session:
        self.tails.clear()
        self.writes, self.mask = writes, mask
        return self

    def select(self, rows: Tensor) -> None:
        """Go on with these rows of the batch: (new batch,) indices."""
        self.mask = None
        self.states = {
            n: Slots(*(t[rows] for t in x)) if isinstance(x, Slots) else x[rows] for n, x in self.states.items()
        }
        self.tails = {n: Tail(tail.inputs[rows], tail.address[rows]) for n, tail in self.tails.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What is told, without the running segment, for a bundle: ``<layer>.<name>``."""
        parts = {layer: x._asdict() if isinstance(x, Slots) else {"memory": x} for layer, x in self.states.items()}
        return {f"{layer}.{name}": tensor for layer, named in parts.items() for name, tensor in named.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], batch: int = 1, device: torch.device | None = None) -> Session:
        """From ``tensors`` of one conversation, for ``batch`` continuations of it."""
        parts: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            layer, _, field_name = name.partition(".")
            parts.setdefault(int(layer), {})[field_name] = tensor.to(device).expand(batch, *tensor.shape[1:])
        return cls({layer: named["memory"] if "memory" in named else Slots(**named) for layer, named in parts.items()})


class NativeMemory(nn.Module):
    """One memory layer; without a session it adds exactly nothing."""

    def __init__(self, width: int, layer: int, settings: NativeSettings) -> None:
        super().__init__()
        self.settings, self.layer = settings, layer
        self.mix = nn.Conv1d(width, width, settings.kernel, groups=width, bias=False)
        self.address = nn.Linear(width, settings.d, bias=False)
        self.value = nn.Linear(width, settings.d, bias=False)
        self.rate = nn.Linear(width, 1)
        self.output = nn.Linear(settings.d, width, bias=False)
        self.scale = nn.Parameter(torch.ones(1))  # lambda; shards have no scalars
        if settings.kind == "fast_weights":
            self.decay = nn.Linear(width, 1)
        self.session: Session | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (batch, tokens, width), the MLP's input -> what the memory adds to the MLP's output."""
        session = self.session
        if session is None:
            return torch.zeros_like(hidden)
        tail = session.tails.get(self.layer) or self._start(hidden)
        mask = session.mask if session.mask is not None and session.mask.shape == hidden.shape[:2] else None
        if mask is not None:
            hidden = hidden * mask[..., None].to(hidden.dtype)
        context = torch.cat([tail.inputs.to(hidden.dtype), hidden], dim=1)
        mixed = self.mix(context.transpose(1, 2)).transpose(1, 2)
        queries = nn.functional.normalize(self.address(mixed).float(), dim=-1)  # (batch, tokens, d)
        addresses = torch.cat([tail.address, queries[:, :-1]], dim=1)
        kept = context[:, context.shape[1] - (self.settings.kernel - 1) :]
        session.tails[self.layer] = Tail(kept, queries[:, -1:])
        rate = (self.rate(mixed).float() + WRITES).sigmoid()[..., 0] * addresses.any(-1)
        if mask is not None:
            rate = rate * mask
        read = self._step(session, hidden, mixed, queries, addresses, rate)
        return self.scale * self.output(read.to(hidden.dtype))

    def _start(self, hidden: Tensor) -> Tail:
        batch, _, width = hidden.shape
        return Tail(
            hidden.new_zeros(batch, self.settings.kernel - 1, width),
            torch.zeros(batch, 1, self.settings.d, device=hidden.device),
        )

    def _step(
        self, session: Session, hidden: Tensor, mixed: Tensor, queries: Tensor, addresses: Tensor, rate: Tensor
    ) -> Tensor:
        """Read, and write where the session does: (batch, tokens, d)."""
        session.rates[self.layer] = rate
        settings, state = self.settings, session.states.get(self.layer)
        if state is None:
            state = self._nothing(len(hidden), hidden.device)
        if not session.writes:
            return state.read(queries, settings.reading) if isinstance(state, Slots) else queries @ state
        values = self.value(hidden)
        if isinstance(state, Slots):
            read, state = state.write(queries, addresses, values, rate, settings.reading, settings.floor)
        else:
            decay = (self.decay(mixed).float() + REMEMBERS).sigmoid()[..., 0]
            read, state = chunked(state, queries, addresses, values, rate, decay)
        session.states[self.layer] = state
        return read

    def _nothing(self, batch: int, device: torch.device) -> Slots | Tensor:
        if self.settings.kind == "slots":
            return Slots.empty(batch, self.settings.d, device)
        return torch.zeros(batch, self.settings.d, self.settings.d, device=device)


def native_layers(model: nn.Module) -> list[NativeMemory]:
    return [module for module in model.modules() if isinstance(module, NativeMemory)]


@contextmanager
def remembering(model: nn.Module, session: Session) -> Iterator[Session]:
    """Run the model with what ``session`` has been told; what it is told now goes into the same session."""
    layers = native_layers(model)
    for layer in layers:
        layer.session = session
    try:
        yield session
    finally:
        for layer in layers:
            layer.session = None
