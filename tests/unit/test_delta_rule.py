"""Equation 3 inside the transformer: the parallel form is the definition, and one write does what the rule says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.model.delta_rule import chunked, recurrent

BATCH, FEATURES, WIDTH = 2, 6, 4


def inputs(tokens: int, seed: int, slowest: float = 0.0, device: str = "cpu") -> tuple[Tensor, ...]:
    """(memory, queries, keys, values, rate, decay); decays lie between ``slowest`` and 1."""
    random = torch.Generator().manual_seed(seed)
    keys = nn.functional.normalize(torch.randn(BATCH, tokens, FEATURES, generator=random), dim=-1)
    queries = torch.randn(BATCH, tokens, FEATURES, generator=random)
    values = torch.randn(BATCH, tokens, WIDTH, generator=random)
    rate, decay = torch.rand(2, BATCH, tokens, generator=random)
    memory = torch.randn(BATCH, FEATURES, WIDTH, generator=random)
    found = (memory, queries, keys, values, rate, slowest + (1 - slowest) * decay)
    return tuple(x.to(device) for x in found)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 40),
    chunk=st.integers(1, 17),
    seed=st.integers(0, 2**16),
    slowest=st.floats(0, 1),
    gated=st.booleans(),
)
def test_the_parallel_form_is_the_recurrent_one(
    tokens: int, chunk: int, seed: int, slowest: float, gated: bool
) -> None:
    *given_, decay = inputs(tokens, seed, slowest)
    gate = decay if gated else None
    for found, wanted in zip(chunked(*given_, gate, chunk=chunk), recurrent(*given_, gate), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_both_forms_agree_on_a_gpu() -> None:
    given_ = inputs(100, seed=0, slowest=0.5, device="cuda")
    for found, wanted in zip(chunked(*given_), recurrent(*given_), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_gradients_of_both_forms_agree() -> None:
    def gradients(form) -> list[Tensor]:  # type: ignore[no-untyped-def]
        leaves = [x.clone().requires_grad_() for x in inputs(12, seed=3, slowest=0.3)]
        reads, memory = form(*leaves)
        return list(torch.autograd.grad(reads.square().sum() + memory.sum(), leaves))

    short = gradients(lambda *x: chunked(*x, chunk=5))
    for found, wanted in zip(short, gradients(recurrent), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_autocast_does_not_round_the_memory() -> None:
    given_ = inputs(30, seed=1, slowest=0.5)
    plain = chunked(*given_)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked(*given_)
    for got, wanted in zip(found, plain, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted)


@settings(max_examples=20, deadline=None)
@given(times=st.sampled_from([4, 16]), rate=st.floats(0.05, 1), seed=st.integers(0, 2**16))
def test_a_key_rewritten_is_pulled_to_its_last_value(times: int, rate: float, seed: int) -> None:
    """The error that is left after n writes of one value is (1 - rate)^n; a rate of 1 overwrites."""
    random = torch.Generator().manual_seed(seed)
    key = nn.functional.normalize(torch.randn(1, 1, FEATURES, generator=random), dim=-1)
    old, new = torch.randn(2, 1, 1, WIDTH, generator=random)
    memory = key[0, 0][None, :, None] * old  # the key reads old
    many = key.expand(1, times, FEATURES)
    reads, _ = chunked(memory, many, many, new.expand(1, times, WIDTH), torch.full((1, times), rate))
    torch.testing.assert_close(reads[0, -1], (new + (1 - rate) ** times * (old - new))[0, 0], rtol=1e-3, atol=1e-4)


def test_other_keys_are_left_alone() -> None:
    """Orthogonal keys: what is written under one is not heard under the other."""
    keys = torch.eye(FEATURES)[None]
    values = torch.randn(1, FEATURES, WIDTH, generator=torch.Generator().manual_seed(0))
    _, memory = chunked(torch.zeros(1, FEATURES, WIDTH), keys, keys, values, torch.ones(1, FEATURES))
    torch.testing.assert_close(keys @ memory, values)
