"""The mixture of sequences is a distribution, on a real transformer small enough to list everything that it can say."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.evaluate.protocol import prompt_messages
from pipeline.memory.mixture import CopyMixture, Mixture, mixture_of
from pipeline.memory.types import Reading, SlotWeight
from pipeline.model.answerer import Answerer

LETTERS, END, LONGEST = "abc", 3, 3
PROMPT = torch.tensor([[0, 2]])


@cache
def four_words() -> LlamaForCausalLM:
    """A transformer with the vocabulary a, b, c and the end."""
    config = LlamaConfig(
        vocab_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.6, eos_token_id=END, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlamaForCausalLM(config).double().eval()


def ids_of(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


@cache
def everything_sayable() -> tuple[Tensor, Tensor]:
    """All answers that end within LONGEST tokens and all that do not, (n, LONGEST), and where each one counts."""
    ended = [[*word, END] for length in range(LONGEST) for word in product(range(3), repeat=length)]
    cut = [list(word) for word in product(range(3), repeat=LONGEST)]
    rows = ended + cut
    counts = torch.tensor([[place < len(row) for place in range(LONGEST)] for row in rows])
    return torch.tensor([row + [END] * (LONGEST - len(row)) for row in rows]), counts


@torch.inference_mode()
def log_probabilities(mixture: Mixture | None) -> Tensor:
    """(n,): what step-by-step decoding gives each of :func:`everything_sayable`."""
    texts, counts = everything_sayable()
    processor = CopyMixture([mixture] * len(texts), ids_of, END)
    total = torch.zeros(len(texts), dtype=torch.float64)
    for step in range(LONGEST):
        ids = torch.cat([PROMPT.expand(len(texts), -1), texts[:, :step]], dim=1)
        scores = processor(ids, four_words()(input_ids=ids).logits[:, -1])
        said = scores.log_softmax(-1).gather(1, texts[:, step : step + 1])[:, 0]
        total += torch.where(counts[:, step], said, torch.zeros_like(said))
    return total


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    answers = draw(st.lists(st.text(LETTERS, min_size=1, max_size=2), min_size=1, max_size=3, unique=True))
    parts = [draw(st.floats(0.01, 1.0)) for _ in answers]
    gate = draw(st.floats(0.01, 1.0))
    return Mixture({answer: gate * part / sum(parts) for answer, part in zip(answers, parts, strict=True)})


@given(mixtures())
@settings(max_examples=30, deadline=None)
def test_it_sums_to_one_and_is_the_closed_form(mixture: Mixture) -> None:
    texts, _ = everything_sayable()
    found = log_probabilities(mixture).exp()
    assert found.sum().item() == pytest.approx(1.0, abs=1e-9)
    copied = torch.tensor([
        sum(share for answer, share in mixture.shares.items() if (ids_of(answer) + [END] * LONGEST)[:LONGEST] == row)
        for row in texts.tolist()
    ])  # fmt: skip
    expected = (1 - mixture.gate) * log_probabilities(None).exp() + copied
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-7)


@given(mixtures())
@settings(max_examples=20, deadline=None)
def test_the_posterior_of_copying_is_bayes(mixture: Mixture) -> None:
    answer = mixture.best
    row = torch.tensor([[*ids_of(answer), END]])
    processor = CopyMixture([mixture], ids_of, END)
    with torch.inference_mode():
        for step in range(row.shape[1]):
            ids = torch.cat([PROMPT, row[:, :step]], dim=1)
            processor(ids, four_words()(input_ids=ids).logits[:, -1])
    texts, _ = everything_sayable()
    place = texts.tolist().index((row[0].tolist() + [END] * LONGEST)[:LONGEST])
    whole = log_probabilities(mixture)[place].exp().item()
    (posterior,) = processor.copied(torch.cat([PROMPT, row], dim=1))
    assert posterior == pytest.approx(mixture.shares[answer] / whole, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_row_without_a_gate_keeps_its_logits_bit_for_bit(dtype: torch.dtype) -> None:
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    processor = CopyMixture([None, Mixture({"ab": 0.4}), Mixture({"c": 0.0})], ids_of, END)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = processor(PROMPT.expand(3, -1), scores)
    assert mixed.dtype == dtype
    assert torch.equal(mixed[0], scores[0])
    assert torch.equal(mixed[2], scores[2])
    assert not torch.equal(mixed[1], scores[1])
    assert mixed[1].float().exp().sum().item() == pytest.approx(1.0, abs=0.02)


def test_the_answerer_decodes_from_mixtures_and_leaves_other_rows_alone(base: Answerer) -> None:
    prompts = [prompt_messages(text) for text in ("Who rules Narnia?", "When did Rome fall?", "Where is Oz?")]
    plain = base.generate(prompts, max_new_tokens=8)
    found = base.generate(
        prompts, max_new_tokens=8, mixtures=[Mixture({"Aslan": 0.9, "Tash": 0.1}), None, Mixture({"far": 1e-30})]
    )
    assert (found[0].text, found[0].finished) == ("Aslan", True)
    assert found[0].copied == pytest.approx(1.0)
    assert found[1] == plain[1]
    assert (found[2].text, found[2].copied) == (plain[2].text, pytest.approx(0.0, abs=1e-6))
    assert base.generate(prompts, max_new_tokens=8, mixtures=[Mixture({}), None, Mixture({})]) == plain


def test_shares_are_weights_times_beliefs() -> None:
    slots = (
        SlotWeight("les_a", "q", "x", 0.5, 0.6, beliefs={"x": 0.6, "y": 0.3}),
        SlotWeight("les_b", "q", "y", 0.2, 1.0),
    )
    mixture = mixture_of(Reading(0.3, slots))
    assert mixture.shares == {"x": pytest.approx(0.3), "y": pytest.approx(0.35)}
    assert mixture.gate == pytest.approx(0.65)  # belief that no lesson is right is the model's
    assert mixture.best == "y"
