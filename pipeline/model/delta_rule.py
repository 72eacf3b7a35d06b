"""Equation 3 inside the transformer: a memory that is written while the model runs, without backpropagation.

The memory is a matrix ``M`` (features, d), and reading is ``x M``. One write is the gated delta rule

    M <- decay * M + rate * k (v - k M)        error = v - k M, input = k

(Widrow and Hoff 1960; as a sequence layer Schlag et al. 2021, arXiv:2102.11174; with a decay Yang et al. 2024,
arXiv:2412.06464; there the state is kept transposed, S = M^T: S <- decay * S + rate * (v - S k) k^T).
What the features are makes the two kinds of memory: the slot weights of equation 2 (``slots.py``: one row per slot), or
the address itself (fast weights: d rows, so that about d facts fit).

Everything is computed in float32, also under autocast: a memory that is read back for ever must not be rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recurrent(
    memory: Tensor, queries: Tensor, keys: Tensor, values: Tensor, rate: Tensor, decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token: the definition, which ``chunked`` is tested against.

    memory (batch, features, d); queries, keys (batch, tokens, features); values (batch, tokens, d); rate, decay
    (batch, tokens) in [0, 1]. Returns what each token reads after its own write (batch, tokens, d), and the memory.
    """
    reads = []
    for t in range(keys.shape[1]):
        key = keys[:, t, :, None]  # (batch, features, 1)
        error = values[:, t, None] - key.transpose(1, 2) @ memory  # (batch, 1, d)
        kept = memory if decay is None else decay[:, t, None, None] * memory
        memory = kept + rate[:, t, None, None] * key @ error
        reads.append((queries[:, t, None] @ memory)[:, 0])
    return torch.stack(reads, dim=1) if reads else values, memory


def chunked(
    memory: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rate: Tensor,
    decay: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """The same in parallel over ``chunk`` tokens at a time; shapes and results as ``recurrent``.

    With G_t the product of the chunk's decays up to t, the errors u_t of a chunk solve one triangular system,
    u_t = v_t - G_(t-1) k_t M_0 - sum_(s<t) (G_(t-1) / G_s) rate_s (k_t . k_s) u_s
    (the WY form of Yang et al. 2024, arXiv:2406.06484, section 3, here with the decay).
    """
    if not keys.shape[1]:
        return values, memory
    with torch.autocast(memory.device.type, enabled=False):
        memory, queries, keys, values, rate = (x.float() for x in (memory, queries, keys, values, rate))
        log_decay = torch.zeros_like(rate) if decay is None else decay.float().clamp(min=1e-12).log()
        reads = []
        for parts in zip(*(x.split(chunk, dim=1) for x in (queries, keys, values, rate, log_decay)), strict=True):
            read, memory = _chunk(memory, *parts)
            reads.append(read)
        return torch.cat(reads, dim=1), memory


def _chunk(
    memory: Tensor, queries: Tensor, keys: Tensor, values: Tensor, rate: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor]:
    total = log_decay.cumsum(-1)  # log G_t: (batch, tokens)
    before = (total - log_decay)[..., None]  # log G_(t-1)
    tokens = keys.shape[1]
    so_far = torch.ones(tokens, tokens, dtype=torch.bool, device=keys.device).tril()
    earlier = so_far.tril(-1)

    def spread(kept: Tensor, mask: Tensor) -> Tensor:
        """exp(kept_t - log G_s) where s may be seen from t, else 0: (batch, tokens, tokens)."""
        return (kept - total[:, None]).masked_fill(~mask, float("-inf")).exp()

    influence = (keys @ keys.transpose(1, 2)) * spread(before, earlier) * rate[:, None]
    own = values - before.exp() * (keys @ memory)
    unit = influence + torch.eye(tokens, device=keys.device)
    errors = torch.linalg.solve_triangular(unit, own, upper=False, unitriangular=True)  # u: (batch, tokens, d)
    steps = rate[..., None] * errors
    seen = (queries @ keys.transpose(1, 2)) * spread(total[..., None], so_far)
    reads = total[..., None].exp() * (queries @ memory) + seen @ steps
    left = (total[:, -1:] - total).exp()[..., None]  # G_T / G_s
    return reads, total[:, -1, None, None].exp() * memory + (left * keys).transpose(1, 2) @ steps
