"""Bundles and the answerer that they load into."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import Recipe
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import HEADER, TENSORS, Bundle, BundleError, tensors_digest
from pipeline.train.addressing import place_keys, question_states
from pipeline.train.cycle import CycleError, require_same_model
from tests.tiny import LESSONS, REPLAY, tiny_model

QUESTIONS = [question for question, _ in LESSONS]


@pytest.fixture(scope="module")
def bundle(base: Answerer) -> Bundle:
    """One with something in every part."""
    layers = base.bundle.recipe.train.memory
    states = question_states(base.backbone, [*QUESTIONS, *REPLAY], layers.key_layer)
    state = place_keys(None, states[:4], ["a", "b", "c", "d"], states[4:], layers)
    torch.manual_seed(0)
    return replace(
        base.bundle,
        trained_through_seq=17,
        cycle=2,
        parent=1,
        tensors={"model.norm.weight": torch.full((32,), 0.5, dtype=torch.bfloat16)},
        memory=replace(state, values=torch.randn(state.values.shape)),
        router={"open": torch.tensor([1.5])},
    )


def test_saved_and_loaded_it_is_the_same_bit_by_bit(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "one")
    found = Bundle.load(tmp_path / "one")
    assert found.digest() == bundle.digest()
    plain = ("recipe", "base_digest", "trained_through_seq", "cycle", "parent")
    assert [getattr(found, name) for name in plain] == [getattr(bundle, name) for name in plain]
    assert found.tensors["model.norm.weight"].dtype == torch.bfloat16
    assert found.memory is not None
    assert bundle.memory is not None
    assert found.memory.header() == bundle.memory.header()
    for name, tensor in bundle.memory.tensors().items():
        assert torch.equal(getattr(found.memory, name), tensor)
    found.save(tmp_path / "two")
    for name in (HEADER, TENSORS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_untrained_bundle_is_almost_nothing(base: Answerer, tmp_path: Path) -> None:
    base.bundle.save(tmp_path)
    found = Bundle.load(tmp_path)
    assert found.digest() == base.bundle.digest()
    assert (found.tensors, found.memory, found.router) == ({}, None, {})
    assert (tmp_path / TENSORS).stat().st_size < 100


def test_a_flipped_bit_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    tensors["memory.values"].view(torch.int32)[0, 0, 0] ^= 1
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(BundleError, match="do not match their recorded digest"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("name", [HEADER, TENSORS])
def test_half_a_file_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    bundle.save(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("name", [HEADER, TENSORS])
def test_a_missing_file_is_named(bundle: Bundle, tmp_path: Path, name: str) -> None:
    bundle.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.load(tmp_path)


def test_a_later_format_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    header = json.loads((tmp_path / HEADER).read_text())
    (tmp_path / HEADER).write_text(json.dumps(header | {"format": 99}))
    with pytest.raises(BundleError, match="bundle format 99"):
        Bundle.load(tmp_path)


def test_other_base_weights_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = bundle.recipe.with_changes({"model.base": tiny_model(tmp_path / "other")})
    weights = tmp_path / "other" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(BundleError, match=f"rests on weights {bundle.base_digest[:12]}"):
        Answerer.load(replace(bundle, recipe=other))


# scoring


def test_scores_are_the_mean_log_likelihood_of_the_answer_s_tokens(base: Answerer) -> None:
    options = [["euro", "a longer answer"], ["x"], ["Rio de Janeiro", "Q", "7 hills"], ["ten"]]
    found = base.score(QUESTIONS, options)
    for question, texts, scores in zip(QUESTIONS, options, found, strict=True):
        assert scores == pytest.approx([naive_score(base, question, text) for text in texts], rel=1e-4)


def naive_score(answerer: Answerer, question: str, text: str) -> float:
    """One sequence, no batch, no cache."""
    prompt = answerer.backbone.prompt(prompt_messages(question)).ids
    answer = answerer.backbone.answer_ids(text)
    with torch.inference_mode():
        logits = answerer.backbone.model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0].log_softmax(-1)
    return float(sum(logits[len(prompt) - 1 + n, token] for n, token in enumerate(answer)) / len(answer))


def test_memory_layers_speak_in_scores_too(base: Answerer, bundle: Bundle) -> None:
    spoken = Answerer.load(replace(bundle, tensors={}), share=base)
    options = [["euro", "x"]] * len(QUESTIONS)
    assert spoken.score(QUESTIONS, options) != base.score(QUESTIONS, options)
    quiet = [["euro", "x"]] * len(REPLAY)
    assert spoken.score(REPLAY, quiet) == base.score(REPLAY, quiet)


def test_a_batch_answers_as_one_by_one(base: Answerer) -> None:
    prompts = [prompt_messages(question) for question in (*QUESTIONS, *REPLAY)]
    together = base.generate(prompts)
    assert [g.text for g in together] == [base.generate([prompt])[0].text for prompt in prompts]


def test_guesses_change_the_time_and_nothing_else(base: Answerer, bundle: Bundle) -> None:
    spoken = Answerer.load(replace(bundle, tensors={}), share=base)
    prompts = [prompt_messages(question) for question in (*QUESTIONS, *REPLAY)]
    for limit in (2, 8):
        decoded = spoken.generate(prompts, max_new_tokens=limit)
        texts: list[str] = [answer.text for answer in decoded]
        wrong = [texts[-1], *texts[:-1]]
        for guesses in (
            texts,
            wrong,
            [text + " x" for text in texts],
            [text[:-1] for text in texts],
            [""] * len(texts),
        ):
            assert spoken.generate(prompts, max_new_tokens=limit, guesses=guesses) == decoded
    partly = [None if number % 2 else text for number, text in enumerate(texts)]
    assert spoken.generate(prompts, max_new_tokens=8, guesses=partly) == decoded


def test_a_bundle_from_before_lambda_and_codebooks_reads_as_it_did(bundle: Bundle, tmp_path: Path) -> None:
    """Without the new fields: scale 1, and every key on its phrasing's own state."""
    bundle.save(tmp_path)
    header, tensors = json.loads((tmp_path / HEADER).read_text()), load_file(tmp_path / TENSORS)
    del header["memory"]["scale"], tensors["memory.reach"]
    save_file(tensors, tmp_path / TENSORS)
    (tmp_path / HEADER).write_text(json.dumps(header | {"tensors_digest": tensors_digest(tensors)}))
    found = Bundle.load(tmp_path)
    assert found.memory is not None
    assert bundle.memory is not None
    assert found.memory.scale == 1.0
    torch.testing.assert_close(found.memory.reach, bundle.memory.reach)


def test_a_cycle_on_another_model_is_refused_before_it_trains(bundle: Bundle) -> None:
    require_same_model(bundle.recipe, bundle)
    with pytest.raises(CycleError, match="model.base = 'package:smollm2'.*give the recipe"):
        require_same_model(Recipe(), bundle)
