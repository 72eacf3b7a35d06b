"""Keys and values of the rows that run together, as transformers' layers expect to find them.

One tensor holds every layer, so that a row is moved, or filled from a remembered prefix, by one copy. It grows by
blocks as rows and lengths need it and never beyond the budget of tokens that it was given.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

BLOCK = 64  # tokens by which a row's capacity grows


class RowLayer(CacheLayerMixin):
    """One layer's view: a forward pass writes at (row, position) and reads the first ``length`` positions.

    ``update`` is what transformers calls; ``write`` takes what a projection gives, tokens before heads.
    """

    def __init__(self, owner: KeyValueRows, index: int) -> None:
        super().__init__()
        self._owner = owner
        self._index = index

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """(n, heads, tokens, d) in; the rows' whole (n, heads, length, d) out."""
        return self.write(torch.cat([key_states, value_states], 1).transpose(1, 2))

    def write(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, then values, (n, tokens, 2 heads, d) in; the rows' whole (n, heads, length, d) out, twice."""
        owner = self._owner
        store = owner.store[self._index]  # (2, rows, heads, capacity + 1, d)
        store[:, owner.rows, :, owner.positions] = states.unflatten(2, (2, -1))
        keys, values = store[:, owner.first : owner.last, :, : owner.length]
        return keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is lazy here: the owner allocates."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._owner.length, 0

    def get_seq_length(self) -> int:
        return self._owner.length

    def get_max_length(self) -> int:
        return self._owner.capacity


class KeyValueRows(Cache):
    """At most ``max_rows`` rows; rows x capacity stays within ``budget`` tokens.

    The last position of each row is scratch: padding is written there and nobody reads it.
    """

    def __init__(self, config: PretrainedConfig, max_rows: int, budget: int, like: Tensor) -> None:
        text = config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.max_rows, self.budget = max_rows, budget
        self._shape = (text.num_hidden_layers, 2, heads, width)
        self._like = like
        self.store = self._new(0, 0)
        self.first = self.last = self.length = 0
        self.rows = self.positions = torch.zeros(0, 0, dtype=torch.long)
        self.row_layers = [RowLayer(self, index) for index in range(text.num_hidden_layers)]
        super().__init__(layers=list(self.row_layers))

    def _new(self, rows: int, capacity: int) -> Tensor:
        """(layers, 2, rows, heads, capacity + 1, d)."""
        layers, pair, heads, width = self._shape
        return self._like.new_zeros(layers, pair, rows, heads, capacity + 1, width)

    @property
    def capacity(self) -> int:
        return self.store.shape[4] - 1

    def fits(self, rows: int, tokens: int) -> bool:
        return rows <= self.max_rows and rows * blocks(tokens) <= self.budget

    def reserve(self, rows: int, tokens: int) -> None:
        """Room for ``rows`` rows of ``tokens`` tokens; a row count that shrank gives its memory back."""
        have_rows, have_tokens = self.store.shape[2], self.capacity
        capacity = max(blocks(tokens), have_tokens if rows * have_tokens <= self.budget else 0)
        if rows <= have_rows and capacity == have_tokens:
            return
        doubled = min(self.max_rows, max(rows, 2 * have_rows), max(rows, self.budget // capacity))
        keep_rows, keep_tokens = min(have_rows, doubled), min(have_tokens, capacity)
        grown = self._new(doubled, capacity)
        grown[:, :, :keep_rows, :, :keep_tokens] = self.store[:, :, :keep_rows, :, :keep_tokens]
        self.store = grown

    def aim(self, first: int, positions: Tensor, length: int) -> None:
        """The next forward pass is of rows ``first``... at ``positions`` (n, tokens), reading ``length`` positions."""
        self.first, self.last, self.length = first, first + len(positions), length
        self.rows = torch.arange(first, self.last, device=positions.device)[:, None]
        self.positions = positions

    def move(self, source: int, target: int, length: int) -> None:
        self.store[:, :, target, :, :length] = self.store[:, :, source, :, :length]

    def copy_out(self, row: int, length: int) -> Tensor:
        return self.store[:, :, row, :, :length].clone()

    def copy_in(self, row: int, saved: Tensor, length: int) -> None:
        self.store[:, :, row, :, :length] = saved[:, :, :, :length]


class PrefixStore:
    """Keys and values of prompt beginnings (the system prompt, earlier turns), least recently used out first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget  # tokens
        self.tokens = 0
        self._saved: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def longest(self, ids: tuple[int, ...]) -> tuple[int, Tensor | None]:
        """The longest remembered beginning of ``ids`` that leaves at least one token to run."""
        found = max((known for known in self._saved if known == ids[: len(known)]), key=len, default=())
        if not found or len(found) >= len(ids):
            return 0, None
        self._saved.move_to_end(found)
        return len(found), self._saved[found]

    def wants(self, ids: tuple[int, ...]) -> bool:
        return 0 < len(ids) <= self.budget and ids not in self._saved

    def add(self, ids: tuple[int, ...], saved: Tensor) -> None:
        self._saved[ids] = saved
        self.tokens += len(ids)
        while self.tokens > self.budget:
            gone, _ = self._saved.popitem(last=False)
            self.tokens -= len(gone)


def blocks(tokens: int) -> int:
    """``tokens`` rounded up to whole blocks."""
    return -(-tokens // BLOCK) * BLOCK
