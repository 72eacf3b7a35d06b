"""Half-precision weights for a few tokens: the same sentence, read in less time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.model import encoder as encoders
from pipeline.model.encoder import load_encoder
from pipeline.model.half_linear import ENGINES, HalfLinear, halve

packs = pytest.mark.skipif(torch.backends.quantized.engine not in ENGINES, reason="this CPU has no such product")


@packs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (2, 7, 24)])
def test_a_map_is_the_one_with_rounded_weights(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 40, bias=bias), torch.randn(shape)
    found = HalfLinear(linear)(x)
    linear.weight.data = linear.weight.data.half().float()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, linear(x), rtol=1e-5, atol=1e-5)


@packs
def test_every_linear_map_of_the_default_encoder_is_one() -> None:
    kinds = [type(module) for module in load_encoder(device="cpu").model.modules()]
    assert HalfLinear in kinds
    assert nn.Linear not in kinds


@packs
def test_a_model_elsewhere_than_on_the_cpu_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"))
    halve(model)
    assert type(model[0]) is nn.Linear


@packs
def test_a_sentence_is_encoded_as_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Where is the Eiffel Tower?", "who wrote the book that the film was made of", "7", "The capital of X is"]
    halved = load_encoder(device="cpu").encode(texts)
    monkeypatch.setattr(encoders, "halve", lambda _: None)
    np.testing.assert_array_less(1 - 1e-5, (halved * load_encoder(device="cpu").encode(texts)).sum(axis=1))
