"""Versions asked through one store: the same answers as asking each, and nothing decoded that the layers left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import Recipe
from pipeline.evaluate.answers import AnswerCache, CachedGenerator, Store, model_name
from pipeline.evaluate.protocol import prompt_messages
from pipeline.evaluate.shared import SharedAnswerer
from pipeline.model.answerer import Answerer
from pipeline.train.dataset import TrainingSet
from pipeline.train.distributed import Sharing
from pipeline.train.loop import Loop
from pipeline.train.methods import build_method
from tests.tiny import LESSONS, UNRELATED, tiny_training_set

PROMPTS = [prompt_messages(text) for text in (*(question for question, _ in LESSONS), *UNRELATED)]
OPTIONS = (["x", "K", "7"], ["a", "b", "cc"])
PROBES = (LESSONS[0][0], UNRELATED[0])


def after(answerer: Answerer, data: TrainingSet, recipe: Recipe) -> Answerer:
    method = build_method(answerer, data, recipe.train, Sharing())
    for _ in Loop(method, recipe.train).run():
        pass
    return Answerer.load(method.result(), share=answerer)


@pytest.fixture
def versions(recipe: Recipe, base: Answerer) -> list[Answerer]:
    """The bare model, one that learned two lessons, and one that learned the other two after them."""
    first = after(base, tiny_training_set(2), recipe)
    rest = tiny_training_set(4)
    later = TrainingSet(tuple(item for item in rest.items if item.lesson_id in ("les_2", "les_3")), rest.replay)
    return [base, first, after(first, later, recipe)]


def texts(answerer: Answerer | SharedAnswerer, guesses: list[str | None] | None = None) -> list[str]:
    return [answer.text for answer in answerer.generate(PROMPTS, max_new_tokens=4, guesses=guesses)]


@pytest.mark.parametrize("guesses", [None, ["x", "Q", "7", "z", None, None, None]])
def test_the_same_answers_and_only_what_changed_is_asked(
    versions: list[Answerer], guesses: list[str | None] | None
) -> None:
    store, asked = Store(), []
    for version in versions:
        shared = SharedAnswerer(version, store)
        assert texts(shared, guesses) == texts(version)
        for found, own in zip(shared.score(PROBES, OPTIONS), version.score(PROBES, OPTIONS), strict=True):
            assert found == pytest.approx(own, rel=1e-6)  # another company in the batch rounds otherwise
        asked.append(shared.asked)
    assert asked == [7 + 2, 2 + 1, 2]


def test_what_is_read_has_a_name(versions: list[Answerer]) -> None:
    bare, first, later = (version.readings(PROMPTS) for version in versions)
    assert not any(bare)
    assert [bool(name) for name in first] == [True] * 2 + [False] * 5
    assert [bool(name) for name in later] == [True] * 4 + [False] * 3
    assert later[:2] == first[:2]
    assert len(set(later[:4])) == 4


def test_a_value_that_moves_changes_the_name(versions: list[Answerer]) -> None:
    told = versions[1].readings(PROMPTS[:2])
    assert versions[1].memory is not None
    versions[1].memory.values[1, 0, 3] += 1e-3
    assert [a == b for a, b in zip(told, versions[1].readings(PROMPTS[:2]), strict=True)] == [False, True]


def test_only_what_the_bare_weights_say_stays_on_disk(versions: list[Answerer], tmp_path: Path) -> None:
    base, learned, _ = versions
    for version in (learned, learned, base):
        cache = AnswerCache(tmp_path / "answers.db", model_name(base))
        shared = SharedAnswerer(version, Store(cache))
        assert texts(shared) == texts(version)
    assert shared.asked == 2  # the two lessons' questions, which the bare model had not been asked


def test_what_an_evaluation_has_asked_the_bare_weights_is_not_asked_again(
    versions: list[Answerer], tmp_path: Path
) -> None:
    base, learned, _ = versions
    cache = AnswerCache(tmp_path / "answers.db", model_name(base))
    CachedGenerator(base, cache).generate(PROMPTS, max_new_tokens=4)
    shared = SharedAnswerer(learned, Store(cache))
    assert texts(shared) == texts(learned)
    assert shared.asked == 2


def test_changed_weights_share_nothing(recipe: Recipe, base: Answerer) -> None:
    store = Store()
    texts(SharedAnswerer(base, store))
    changes = {"train.method": "full", "train.learning_rate": 1e-3, "train.epochs": 1}
    dense = SharedAnswerer(after(base, tiny_training_set(2), recipe.with_changes(changes)), store)
    assert texts(dense) == texts(dense._answerer)
    assert dense.asked == len(PROMPTS)
    assert torch.is_inference_mode_enabled() is False
