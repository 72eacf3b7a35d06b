"""Slots that are written while a model reads, and product keys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.model.product_keys import ProductSlots, product_key, product_topk
from pipeline.model.slots import Reading, Slots

HOW = Reading(threshold=0.9, temperature=0.01, top_k=4)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(slots: Slots, addresses: Tensor, targets: Tensor, rate: float = 1.0, how: Reading = HOW) -> Slots:
    rates = torch.full(addresses.shape[:2], rate)
    return slots.write(addresses, addresses, targets, rates, how, floor=0.01)[1]


def test_what_was_told_is_read_and_what_was_not_is_exactly_nothing() -> None:
    keys, values = unit(2, 20, 16), numbers(2, 20, 3)
    slots = write(Slots.empty(2, 16, torch.device("cpu"))._replace(values=torch.zeros(2, 0, 3)), keys, values)
    assert slots.used.sum(-1).tolist() == [20, 20]
    torch.testing.assert_close(slots.read(keys, HOW), values, rtol=1e-3, atol=1e-3)
    assert slots.read(unit(2, 50, 16, seed=9), HOW).count_nonzero() == 0


def test_a_key_told_again_takes_the_slot_that_it_has() -> None:
    """In the same chunk, in a later one, and 16 times over."""
    keys, empty = unit(1, 5, 16), Slots.empty(1, 16, torch.device("cpu"))
    first = write(empty, keys, numbers(1, 5, 16))
    last = numbers(1, 5, 16, seed=8)
    again = write(first, keys.repeat(1, 16, 1), torch.cat([numbers(1, 75, 16, seed=7), last], dim=1))
    assert again.used.sum() == 5
    torch.testing.assert_close(again.read(keys, HOW), last, rtol=1e-3, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), tokens=st.integers(1, 12), rate=st.floats(0.1, 1), top_k=st.integers(1, 4))
def test_a_segment_at_once_is_its_tokens_one_by_one(seed: int, tokens: int, rate: float, top_k: int) -> None:
    """Reads, keys and values; rows of a batch open different numbers of slots."""
    how = Reading(threshold=0.5, temperature=0.1, top_k=top_k)
    addresses, queries, targets = (
        unit(2, tokens, 3, seed=seed),
        unit(2, tokens, 3, seed=seed + 1),
        numbers(2, tokens, 3),
    )
    rates = torch.full((2, tokens), rate)
    start = Slots.empty(2, 3, torch.device("cpu"))
    together, slots = start.write(queries, addresses, targets, rates, how, floor=0.01)
    for row in range(2):
        alone = Slots(*(x[:1] for x in start))
        for t in range(tokens):
            one = (x[row : row + 1, t : t + 1] for x in (queries, addresses, targets, rates))
            read, alone = alone.write(*one, how, floor=0.01)
            torch.testing.assert_close(together[row, t], read[0, 0], rtol=1e-3, atol=1e-4)
        count = int(slots.used[row].sum())
        assert count == int(alone.used.sum())
        torch.testing.assert_close(slots.keys[row, :count], alone.keys[0, alone.used[0]])
        torch.testing.assert_close(slots.values[row, :count], alone.values[0, alone.used[0]], rtol=1e-3, atol=1e-4)


def test_a_token_below_the_floor_opens_no_slot() -> None:
    empty, keys = Slots.empty(1, 4, torch.device("cpu")), unit(1, 3, 4)
    rates = torch.tensor([[1.0, 0.2, 0.6]])
    _, slots = empty.write(keys, keys, numbers(1, 3, 4), rates, HOW, floor=0.5)
    assert slots.used.sum() == 2
    assert slots.read(keys, HOW)[0, 1].count_nonzero() == 0


def test_autocast_does_not_round_slots() -> None:
    keys, values, empty = unit(1, 9, 16), numbers(1, 9, 16), Slots.empty(1, 16, torch.device("cpu"))
    plain = write(empty, keys, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = write(empty, keys, values)
        read = found.read(keys, HOW)
    assert torch.equal(found.values, plain.values)
    assert torch.equal(read, plain.read(keys, HOW))


# product keys


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 9), half=st.integers(1, 4), k=st.integers(1, 12))
def test_product_topk_is_the_exhaustive_one_on_the_cartesian_product(seed: int, n: int, half: int, k: int) -> None:
    k = min(k, n * n)
    halves, queries = numbers(2, n, half, seed=seed), numbers(5, 2 * half, seed=seed + 1)
    scores, slots = product_topk(queries, halves, k)
    every = queries @ product_key(torch.arange(n * n), halves).T  # (5, n * n)
    torch.testing.assert_close(scores, every.topk(k, dim=-1).values)
    torch.testing.assert_close(every.gather(-1, slots), scores)
    assert all(len(set(row)) == k for row in slots.tolist())


def test_more_slots_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 2 slots"):
        product_topk(numbers(1, 4), numbers(2, 2, 2), 5)


def test_product_slots_read_what_was_written_last() -> None:
    table = ProductSlots.random(64, 16, 3, top_k=1)
    keys = product_key(torch.tensor([5, 70, 4000]), table.halves)
    values = numbers(3, 3)
    table.write(keys, numbers(3, 3, seed=5))
    table.write(keys, values)
    torch.testing.assert_close(table.read(keys), values)
    assert table.values.any(-1).sum() == 3
