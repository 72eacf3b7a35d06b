"""Equation 2 inside the transformer: weights with a null slot, and nothing at all where no key speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.config import MemoryLayerSettings
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.model.memory_layer import MemoryPass, MemoryState, attached
from pipeline.train.addressing import (
    null_thresholds,
    place,
    place_keys,
    question_states,
    question_tokens,
    read_of,
    whitening,
)
from pipeline.train.sequences import PrefixCache, Targets, lesson_sequence, logits_after_prefix, logits_of_whole
from tests.tiny import LESSONS, REPLAY, tiny_recipe

QUESTIONS = [question for question, _ in LESSONS]
WIDTH = 32


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    torch.set_num_threads(1)
    return Answerer.load(Bundle.initial(tiny_recipe(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="module")
def layers(answerer: Answerer) -> MemoryLayerSettings:
    return answerer.bundle.recipe.train.memory


@pytest.fixture(scope="module", params=["states", "tokens"])
def state(answerer: Answerer, layers: MemoryLayerSettings, request: pytest.FixtureRequest) -> MemoryState:
    """One slot a lesson, values not written yet."""
    settings = layers.model_copy(update={"keys": request.param})
    read = question_tokens if request.param == "tokens" else question_states
    found = list(read(answerer.backbone, [*QUESTIONS, *REPLAY], settings.key_layer))
    slots = [f"les_{number}" for number in range(len(QUESTIONS))]
    return place(None, answerer.backbone, found, slots, settings)


def weights_of(answerer: Answerer, state: MemoryState, questions: Sequence[str]) -> Tensor:
    read = question_tokens if state.head else question_states
    return read_of(state, list(read(answerer.backbone, questions, state.key_layer)))


def written(state: MemoryState) -> MemoryState:
    """The same slots with values that change every answer."""
    generator = torch.Generator().manual_seed(1)
    return replace(state, values=torch.randn(state.values.shape, generator=generator) * 3)


def random_state(seed: int, keys: int, slots: int, rank: int, top_k: int) -> MemoryState:
    generator = torch.Generator().manual_seed(seed)
    return MemoryState(
        slots=tuple(map(str, range(slots))),
        key_layer=0,
        value_layers=(2,),
        top_k=top_k,
        temperature=0.05,
        mean=torch.zeros(rank),
        whiten=torch.eye(rank),
        keys=nn.functional.normalize(torch.randn(keys, rank, generator=generator), dim=-1),
        key_slots=torch.randint(slots, (keys,), generator=generator),
        thresholds=torch.rand(keys, generator=generator) * 0.9,
        values=torch.zeros(1, slots, rank),
        reach=torch.ones(keys),
    )


def null_weight(state: MemoryState, queries: Tensor) -> Tensor:
    """By hand: the null slot's share among the best keys above their thresholds, itself at logit 0."""
    logits = (queries @ state.keys.T - state.thresholds) / state.temperature
    top = logits.topk(min(state.top_k, logits.shape[1]), dim=-1).values
    return 1 / (1 + (top.exp() * (top > 0)).sum(-1))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    keys=st.integers(1, 12),
    slots=st.integers(1, 6),
    rank=st.integers(2, 8),
    top_k=st.integers(1, 5),
)
def test_slot_weights_and_the_null_slot_sum_to_one(seed: int, keys: int, slots: int, rank: int, top_k: int) -> None:
    state = random_state(seed, keys, slots, rank, top_k)
    queries = nn.functional.normalize(torch.randn(5, rank, generator=torch.Generator().manual_seed(seed + 1)), dim=-1)
    weights = state.read(queries)
    assert weights.shape == (5, slots)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(-1) + null_weight(state, queries), torch.ones(5))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), margin=st.floats(0, 1))
def test_a_key_at_or_below_its_threshold_weighs_exactly_nothing(seed: int, margin: float) -> None:
    state = random_state(seed, keys=6, slots=3, rank=4, top_k=4)
    query = nn.functional.normalize(torch.randn(1, 4, generator=torch.Generator().manual_seed(seed + 1)), dim=-1)
    deaf = replace(state, thresholds=(query @ state.keys.T)[0] + margin)
    assert deaf.read(query).tolist() == [[0.0, 0.0, 0.0]]


def test_the_right_slot_speaks_for_its_own_question(state: MemoryState, answerer: Answerer) -> None:
    weights = weights_of(answerer, state, [*QUESTIONS, *REPLAY])
    assert weights[: len(QUESTIONS)].argmax(-1).tolist() == list(range(len(QUESTIONS)))
    assert weights[len(QUESTIONS) :].count_nonzero() == 0


def with_memory(answerer: Answerer, state: MemoryState) -> Answerer:
    return Answerer.load(replace(answerer.bundle, memory=state), share=answerer)


def test_values_of_zero_change_nothing(answerer: Answerer, state: MemoryState) -> None:
    prompts = [prompt_messages(question) for question in QUESTIONS]
    found = with_memory(answerer, state).generate(prompts)
    assert [g.text for g in found] == [g.text for g in answerer.generate(prompts)]
    assert [g.slots[:1] for g in found] == [("les_0",), ("les_1",), ("les_2",), ("les_3",)]


def test_a_prompt_of_the_null_slot_is_bit_identical(answerer: Answerer, state: MemoryState) -> None:
    backbone = answerer.backbone
    batch = backbone.batch([backbone.prompt(prompt_messages(question)) for question in REPLAY])
    memory = MemoryPass(written(state), written(state).values, span=batch.span)

    def logits() -> Tensor:
        with torch.inference_mode():
            return backbone.model(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions).logits

    plain = logits()
    with attached(backbone.layers, memory):
        assert torch.equal(logits(), plain)
    assert memory.addressed
    prompts = [prompt_messages(question) for question in REPLAY]
    found = with_memory(answerer, written(state)).generate(prompts)
    assert [(g.text, g.slots) for g in found] == [(g.text, ()) for g in answerer.generate(prompts)]


def test_values_are_added_from_the_last_prompt_token_on(answerer: Answerer, state: MemoryState) -> None:
    backbone = answerer.backbone
    batch = backbone.batch([backbone.prompt(prompt_messages(question)) for question in QUESTIONS])
    memory = MemoryPass(written(state), written(state).values, span=batch.span)

    def last_layer() -> Tensor:
        with torch.inference_mode():
            return backbone.model(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, output_hidden_states=True
            ).hidden_states[-1]

    plain = last_layer()
    with attached(backbone.layers, memory):
        found = last_layer()
    assert torch.equal(found[:, :-1], plain[:, :-1])
    assert not torch.allclose(found[:, -1], plain[:, -1])


def test_the_cached_prefix_gives_the_whole_sequence_s_logits(answerer: Answerer, state: MemoryState) -> None:
    """What training computes is what serving computes: prefix once, then the last prompt token and the answer."""
    backbone, memory = answerer.backbone, written(state)
    sequences = [lesson_sequence(backbone, question, "ab" * n) for n, question in enumerate(QUESTIONS, 1)]
    weights = weights_of(answerer, memory, QUESTIONS)
    fixed = MemoryPass(memory, memory.values, weights=weights, addressed=True)
    with torch.no_grad():
        prefixes = PrefixCache(backbone, [sequence.prompt for sequence in sequences])
        short, targets = logits_after_prefix(backbone, prefixes, sequences, fixed)
        whole = whole_logits(answerer, memory, sequences, targets)
        plain, _ = logits_after_prefix(backbone, prefixes, sequences, None)
        unread, _ = logits_of_whole(backbone, sequences)
    assert targets.ids[0, :3].tolist() == [*backbone.answer_ids("ab"), backbone.end_token]
    torch.testing.assert_close(short[targets.valid], whole[targets.valid], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain[targets.valid], unread[targets.valid], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(short, plain, rtol=1e-2)


def whole_logits(answerer: Answerer, state: MemoryState, sequences: list, targets: Targets) -> Tensor:  # type: ignore[type-arg]
    """Each sequence alone and uncached, with the values added by hand from the last prompt token on."""
    rows = []
    width = targets.ids.shape[1]
    for sequence in sequences:
        length = len(sequence.prompt.ids)
        ids = torch.tensor([[*sequence.prompt.ids, *sequence.target[:-1]]])
        weights = state.read(state.address(*key_layer_states(answerer, sequence.prompt)))
        handles = [
            answerer.backbone.layers[layer].mlp.register_forward_hook(adding(weights @ state.values[n], length - 1))
            for n, layer in enumerate(state.value_layers)
        ]
        logits = answerer.backbone.model(input_ids=ids, use_cache=False).logits[0, length - 1 :]
        for handle in handles:
            handle.remove()
        rows.append(nn.functional.pad(logits, (0, 0, 0, width - len(logits))))
    return torch.stack(rows)


def key_layer_states(answerer: Answerer, prompt) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    output = answerer.backbone.model(input_ids=torch.tensor([prompt.ids]), output_hidden_states=True)
    return output.hidden_states[1], torch.tensor([prompt.span])  # after decoder layer 0


def adding(read: Tensor, first: int):  # type: ignore[no-untyped-def]
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return torch.cat([output[:, :first], output[:, first:] + read[:, None]], dim=1)

    return hook


def test_generation_reads_what_training_reads(answerer: Answerer, state: MemoryState) -> None:
    memory = written(state)
    served = with_memory(answerer, memory)
    weights = weights_of(answerer, memory, QUESTIONS)
    fixed = MemoryPass(memory, memory.values, weights=weights, addressed=True)
    sequences = [lesson_sequence(answerer.backbone, question, "") for question in QUESTIONS]
    with torch.no_grad():
        logits, _ = logits_after_prefix(
            answerer.backbone, PrefixCache(answerer.backbone, [s.prompt for s in sequences]), sequences, fixed
        )
    first = [answerer.backbone.tokenizer.decode([token]).strip() for token in logits[:, 0].argmax(-1).tolist()]
    texts = [g.text for g in served.generate([prompt_messages(q) for q in QUESTIONS], max_new_tokens=1)]
    assert texts == ["" if text == "<|im_end|>" else text for text in first]


# placing keys


def test_whitened_states_have_unit_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4000, 3, generator=generator) @ torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 0, 0.5]]) + 5
    mean, whiten = whitening(states, ridge=1e-6)
    white = (states - mean) @ whiten
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(3), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(whiten, whiten.T)
    _, damped = whitening(states, ridge=1.0)
    assert float(((states - mean) @ damped).var(0).max()) < 1


def test_a_threshold_lies_above_its_near_misses_and_below_its_own_question() -> None:
    keys = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), dim=-1)
    misses = nn.functional.normalize(torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), dim=-1)
    layers = MemoryLayerSettings(null_quantile=1.0, null_floor=0.2)
    found = null_thresholds(keys, torch.tensor([0, 1, 1]), misses, layers)
    assert found[0] == pytest.approx(2**-0.5, abs=1e-3)  # the miss at 45 degrees
    assert found[1] == pytest.approx(2**-0.5, abs=1e-3)  # the other key of its own slot is no miss
    alone = null_thresholds(keys[:1], torch.tensor([0]), -keys[:1], layers)
    assert alone.tolist() == [pytest.approx(0.2)]
    crowded = null_thresholds(keys[1:], torch.tensor([0, 1]), misses, layers)
    assert crowded.tolist() == [pytest.approx(0.9)] * 2


def grown(answerer: Answerer, before: MemoryState, questions: dict[str, str]) -> MemoryState:
    layers = answerer.bundle.recipe.train.memory
    read = question_tokens if before.head else question_states
    found = list(read(answerer.backbone, [*questions.values(), *REPLAY], layers.key_layer))
    return place(before, answerer.backbone, found, list(questions), layers)


def test_a_recipe_with_other_keys_and_layers_leaves_an_old_memory_s_as_they_are(
    answerer: Answerer, state: MemoryState
) -> None:
    settings = MemoryLayerSettings(keys="states" if state.head else "tokens", key_layer=2, value_layers=(3,))
    read = question_tokens if state.head else question_states
    found = list(read(answerer.backbone, [QUESTIONS[0], *REPLAY], state.key_layer))
    after = place(state, answerer.backbone, found, ["les_new"], settings)
    assert (after.key_layer, after.value_layers) == (state.key_layer, state.value_layers)
    assert torch.equal(after.values[:, : len(state.slots)], state.values)
    assert (after.head is None) == (state.head is None)


def test_old_slots_keep_their_keys_and_values(answerer: Answerer, state: MemoryState) -> None:
    before = written(state)
    after = grown(answerer, before, {"les_new": "What does the fox say?"})
    assert after.slots == (*before.slots, "les_new")
    assert torch.equal(after.keys[: len(before.keys)], before.keys)
    assert torch.equal(after.key_slots[: len(before.keys)], before.key_slots)
    assert torch.equal(after.values[:, : len(before.slots)], before.values)
    assert torch.equal(after.whiten, before.whiten)
    assert after.values[:, -1].count_nonzero() == 0


def test_a_corrected_slot_is_replaced(answerer: Answerer, state: MemoryState) -> None:
    before = written(state)
    after = grown(answerer, before, {"les_1": QUESTIONS[1]})
    assert after.slots == ("les_0", "les_2", "les_3", "les_1")
    assert len(after.keys) == len(before.keys)
    kept = torch.tensor([0, 2, 3])
    assert torch.equal(after.keys[:3], before.keys[kept])
    assert after.key_slots.tolist() == [0, 1, 2, 3]
    assert torch.equal(after.values[:, :3], before.values[:, kept])
    assert after.values[:, 3].count_nonzero() == 0


# ablations of key placement, and lambda


@pytest.mark.parametrize("kind", ["random", "kmeans", "product"])
def test_keys_from_a_codebook_answer_to_their_own_question(kind: str) -> None:
    """As far as they can: a key's threshold is below what its own phrasing reaches, and above nothing else's doing."""
    generator = torch.Generator().manual_seed(0)
    states, replay = torch.randn(6, 9, generator=generator), torch.randn(80, 9, generator=generator)
    layers = MemoryLayerSettings(keys=kind, codes=40, null_quantile=0.5, null_floor=0.0)  # type: ignore[arg-type]
    slots = [f"les_{number}" for number in range(6)]
    state = place_keys(None, states, slots, replay, layers)
    queries = state.address(states[:, None], torch.ones(6, 1, dtype=torch.bool))
    assert not torch.allclose(state.keys, queries, atol=0.1)
    torch.testing.assert_close((queries * state.keys).sum(-1), state.reach)
    assert bool((state.thresholds <= 0.9 * state.reach + 1e-6).all())
    weights = state.read(queries)
    same_key = (state.keys[:, None] == state.keys[None]).all(-1).float()
    assert bool(((weights @ same_key).diagonal() > 0).all())
    later = place_keys(state, states[:1] + 1, ["les_new"], replay, layers)
    assert torch.equal(later.reach[:6], state.reach)


def test_lambda_scales_what_is_read(answerer: Answerer, state: MemoryState) -> None:
    """Half the scale on twice the values is the same answer; without values it is none."""
    full = written(state)
    half = replace(full, values=full.values * 2, scale=0.5)
    output = torch.randn(4, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    weights = weights_of(answerer, state, QUESTIONS)
    read = [
        MemoryPass(s, s.values, weights=weights, addressed=True).write_into(output, layer=0)
        for s in (full, half, replace(full, scale=0.5))
    ]
    torch.testing.assert_close(read[0], read[1])
    torch.testing.assert_close(read[2] - output, (read[0] - output) / 2, rtol=1e-3, atol=1e-5)
