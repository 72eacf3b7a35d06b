"""The trained address of memory slots: token by token, so that a name that is missing cannot be averaged away.

A question's tokens are projected to unit vectors, and each has a weight for what is known (``known``, as a key) and
one for what is asked (``asked``, as a query). With u over a query's tokens and t over a key's, their similarity is

    sim = (1 - m) · Σ_t known_t max_u cos(t, u)  +  m · Σ_u asked_u max_t cos(t, u)

(late interaction: Khattab and Zaharia 2020, with learned weights that sum to 1). A question against itself gives 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

MOST_TOKENS = 24  # of a question: the last ones, because what was said before it stands in front
SHIPPED = "address.safetensors"
CHUNK = 2_000_000  # similarities of tokens that are computed at once


@dataclass(frozen=True)
class AddressHead:
    """Small maps over the states of a frozen early layer: d in, r out."""

    mean: Tensor  # (d,)
    project: Tensor  # (d, r)
    importance: Tensor  # (d, 2) of a token, as part of a key and as part of a query
    bias: Tensor  # (2,)
    mix: Tensor  # () the share of the query's side, m

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("mean", "project", "importance", "bias", "mix")}

    def to(self, device: torch.device, dtype: torch.dtype) -> AddressHead:
        return AddressHead(**{name: tensor.to(device, dtype) for name, tensor in self.tensors().items()})

    def address(self, hidden: Tensor, span: Tensor) -> Tensor:
        """(batch, tokens, d) and the question's tokens (batch, tokens) -> (batch, T, r + 2).

        The last two columns are the weights as a key and as a query; both are 0 on padding.
        """
        hidden, span = last_tokens(hidden, span)
        centred = hidden - self.mean
        unit = nn.functional.normalize(centred @ self.project, dim=-1)
        weights = nn.functional.softplus(centred @ self.importance + self.bias) * span[..., None]
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
        return torch.cat([unit * span[..., None], weights], dim=-1)

    def similarity(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(batch, T, r + 2), (K, U, r + 2) -> (batch, K)."""
        size = max(1, CHUNK // max(1, queries.shape[1] * keys.shape[0] * keys.shape[1]))
        parts = [self._similarity(part, keys) for part in queries.split(size)]
        return torch.cat(parts) if parts else queries.new_zeros(0, len(keys))

    def _similarity(self, queries: Tensor, keys: Tensor) -> Tensor:
        known, asked = keys[..., -2], queries[..., -1]  # (K, U), (batch, T)
        cosines = torch.einsum("btr,kur->bktu", queries[..., :-2], keys[..., :-2])
        cosines = cosines.masked_fill((asked == 0)[:, None, :, None] | (known == 0)[None, :, None], -1.0)
        of_key = (cosines.amax(2) * known).sum(-1)
        of_query = (cosines.amax(3) * asked[:, None]).sum(-1)
        return (1 - self.mix) * of_key + self.mix * of_query


def last_tokens(hidden: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """The last ``MOST_TOKENS`` tokens of each question, moved to the left: (batch, T, d), (batch, T)."""
    wanted = span & (span.flip(1).cumsum(1).flip(1) <= MOST_TOKENS)
    width = max(1, int(wanted.sum(1).max()))
    order = wanted.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1])), wanted.gather(1, order)


def untrained_head(states: Tensor, whiten: Tensor, mean: Tensor, rank: int) -> AddressHead:
    """For a backbone that no head was trained for: whitened states (n, d) on their ``rank`` strongest directions."""
    _, _, directions = torch.linalg.svd((states - mean) @ whiten, full_matrices=False)
    d = len(mean)
    return AddressHead(mean, whiten @ directions[:rank].T, torch.zeros(d, 2), torch.zeros(2), torch.tensor(0.3))


@cache
def shipped_head(base_digest: str, layer: int) -> AddressHead | None:
    """The head that was trained on states of this very layer of these very weights, if there is one."""
    file = Path(str(files("pipeline.model") / SHIPPED))
    with safe_open(file, framework="pt") as kept:
        fits = kept.metadata() == _header(base_digest, layer)
    return load_head(file, base_digest, layer) if fits else None


def save_head(head: AddressHead, file: Path, base_digest: str, layer: int) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.tensors().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata=_header(base_digest, layer))


def load_head(file: Path, base_digest: str, layer: int) -> AddressHead:
    """Raises ``ValueError`` where the head was trained on states of other weights, or of another layer."""
    with safe_open(file, framework="pt") as kept:
        found, wanted = kept.metadata(), _header(base_digest, layer)
        if found != wanted:
            raise ValueError(
                f"train.memory.head = {str(file)!r}: trained on {found}, this backbone's key layer is {wanted}: set "
                "train.memory.key_layer to its layer, or train a head with 'agm pretrain --address'"
            )
        return head_of({name: kept.get_tensor(name) for name in kept.keys()})  # noqa: SIM118


def _header(base_digest: str, layer: int) -> dict[str, str]:
    """What a head's file says about itself."""
    return {"base_digest": base_digest, "layer": str(layer)}


def head_of(tensors: Mapping[str, Tensor]) -> AddressHead:
    return AddressHead(**{name: tensor.float() for name, tensor in tensors.items()})
