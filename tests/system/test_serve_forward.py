"""The Llama pass of the running rows beside transformers' own: the same tokens, wherever it stands in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from pipeline.config import Recipe
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.answerer import Answerer
from pipeline.model.backbone import Backbone
from pipeline.model.bundle import Bundle
from pipeline.train.addressing import place_keys, question_states
from serve import running_batch
from serve.forward import Forward, TransformersForward, forward_of
from serve.int8 import Int8Linear, quantise
from serve.llama import LlamaForward
from serve.running_batch import GREEDY, RunningBatch
from tests.tiny import LESSONS, REPLAY, tiny_recipe

THINGS = ("the sea", "a map", "bread", "iron", "snow", "glass", "a train", "the moon")
QUESTIONS = [
    *(question for question, _ in LESSONS[:4]),
    *(f"{ask} {thing}{end}" for ask, end in (("What is", "?"), ("Who made", "?"), ("Why", "")) for thing in THINGS),
    "word " * 40,
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.set_num_threads(1)
    return tiny_recipe(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def answerer(recipe: Recipe) -> Answerer:
    """With memory layers that speak to the first four questions."""
    plain = Answerer.load(Bundle.initial(recipe))
    settings = recipe.train.memory
    found = question_states(plain.backbone, [*QUESTIONS[:4], *REPLAY], settings.key_layer)
    state = place_keys(None, found[:4], [f"les_{n}" for n in range(4)], found[4:], settings)
    values = torch.randn(state.values.shape, generator=torch.Generator().manual_seed(1)) * 3
    return Answerer(replace(plain.bundle, memory=replace(state, values=values)), plain.backbone)


def written(
    answerer: Answerer,
    questions: Sequence[str],
    count: int,
    through: Callable[[Backbone], Forward],
    monkeypatch: pytest.MonkeyPatch,
) -> list[list[int]]:
    """``count`` greedy tokens for every question, the rows together."""
    with monkeypatch.context() as patch:
        patch.setattr(running_batch, "forward_of", through)
        rows = RunningBatch(answerer, width=len(questions), kv_tokens=65_536, prefix_tokens=512)
    prompts = [answerer.backbone.prompt(prompt_messages(question)) for question in questions]
    steps = [rows.admit(prompts, [count] * len(prompts), [GREEDY] * len(prompts))]
    steps += [rows.step() for _ in range(count - 1)]
    return [list(row) for row in zip(*steps, strict=True)]


def test_the_llama_pass_gives_transformers_tokens_with_memory_layers(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(forward_of(answerer.backbone), LlamaForward)
    fast = written(answerer, QUESTIONS, 24, forward_of, monkeypatch)
    assert fast == written(answerer, QUESTIONS, 24, TransformersForward, monkeypatch)
    silent = Answerer(replace(answerer.bundle, memory=None), answerer.backbone)
    without = written(silent, QUESTIONS, 24, forward_of, monkeypatch)
    assert [a != b for a, b in zip(fast, without, strict=True)][:4] == [True] * 4


def test_weights_stay_one_copy_that_both_passes_see(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = forward_of(answerer.backbone)
    assert forward is forward_of(answerer.backbone)
    before = written(answerer, QUESTIONS[:4], 8, forward_of, monkeypatch)
    key = answerer.backbone.model.model.layers[2].self_attn.k_proj.weight
    kept = key.detach().clone()
    try:
        key.data.mul_(-3)
        changed = written(answerer, QUESTIONS[:4], 8, forward_of, monkeypatch)
        assert changed == written(answerer, QUESTIONS[:4], 8, TransformersForward, monkeypatch)
        assert changed != before
    finally:
        key.data.copy_(kept)


def test_a_model_that_is_no_plain_llama_goes_through_transformers(recipe: Recipe) -> None:
    class Other(LlamaForCausalLM):
        """Might compute anything."""

    backbone = Backbone.load(recipe.model)
    backbone.model.__class__ = Other
    assert isinstance(forward_of(backbone), TransformersForward)


def test_bias_and_head_width_of_their_own_go_through_the_llama_pass(recipe: Recipe) -> None:
    backbone = Backbone.load(recipe.model)
    config = type(backbone.model.config).from_dict(
        {**backbone.model.config.to_dict(), "attention_bias": True, "mlp_bias": True, "head_dim": 12}
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    other = Backbone(model.requires_grad_(False), backbone.tokenizer, "other")
    prompt = other.prompt(prompt_messages("What is bread?"))
    expected = model(torch.tensor([prompt.ids])).logits[0, -1]
    seen: list[torch.Tensor] = []
    rows = RunningBatch(Answerer(Bundle.initial(recipe), other), width=1, kv_tokens=1024)
    choose = rows._choose
    rows._choose = lambda logits, rows: (seen.append(logits[0].clone()), choose(logits, rows))[1]  # type: ignore
    rows.admit([prompt], [1], [GREEDY])
    assert torch.allclose(seen[0], expected, atol=1e-4)


def test_int8_in_the_llama_pass_gives_the_tokens_of_its_modules(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.load(recipe.model)
    quantise(backbone.model)
    rounded = Answerer(Bundle.initial(recipe), backbone)
    fast = written(rounded, QUESTIONS, 16, forward_of, monkeypatch)
    assert fast == written(rounded, QUESTIONS, 16, TransformersForward, monkeypatch)


def test_a_token_in_int8_gets_the_same_alone_and_in_company() -> None:
    torch.manual_seed(0)
    rounded = Int8Linear.of(torch.nn.Linear(96, 64))
    x = torch.randn(5, 96)
    x[3] = 0
    together = rounded(x)
    assert torch.allclose(together, torch.cat([rounded(row[None]) for row in x]), rtol=1e-5, atol=1e-6)
    assert torch.equal(together[3], rounded.bias)
