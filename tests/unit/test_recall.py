"""Associative recall: the task is what it says, and a decoder really learns to use its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config import Recipe, TrainSettings
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.train.dataset import TrainingSet
from pipeline.train.distributed import Sharing
from pipeline.train.loop import Loop
from pipeline.train.methods import build_method
from pipeline.train.recall import CHANCE, PAIR, RecallMethod, draw, examine, key_halves, start_token

START = 256


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    torch.set_num_threads(1)


def test_no_key_of_an_examination_occurs_in_training() -> None:
    learned, examined = (set(half.tolist()) for half in key_halves())
    assert len(learned) == len(examined) == 2**15
    assert not learned & examined


def test_an_episode_asks_for_the_value_told_last() -> None:
    episode = draw(key_halves()[0], pairs=40, questions=30, overwritten=0.25, start=START, seed=3)
    told = [tuple(pair) for pair in episode.told.reshape(-1, PAIR).tolist()]
    assert len(told) == 40 + 10
    assert {pair[2] for pair in told} == {START}
    last = {pair[:2]: pair[3] for pair in told}
    first = {pair[:2]: pair[3] for pair in reversed(told)}
    assert len(last) == 40
    asked = [tuple(question) for question in episode.asked.reshape(-1, PAIR - 1).tolist()]
    assert len(set(asked)) == 30
    assert [last[question[:2]] for question in asked] == episode.answers[0].tolist()
    twice = [sum(pair[:2] == question[:2] for pair in told) == 2 for question in asked]
    assert [first[q[:2]] if again else -1 for q, again in zip(asked, twice, strict=True)] == episode.outdated[
        0
    ].tolist()
    again = draw(key_halves()[0], pairs=40, questions=30, overwritten=0.25, start=START, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(again, episode, strict=True))


def settings(kind: str, **changes: Any) -> Recipe:
    base = {"model.base": f"scratch:tiny:{kind}", "model.device": "cpu", "train.method": "recall"}
    base |= {"train.learning_rate": 3e-3, "train.decay": 0.1, "train.target_loss": 0.0, "train.replay_ratio": 0.0}
    return Recipe().with_changes(base | {f"train.{name}": value for name, value in changes.items()})


def trained(recipe: Recipe) -> Answerer:
    train: TrainSettings = recipe.train
    base = Answerer.load(Bundle.initial(recipe))
    method = build_method(base, TrainingSet((), ()), train, lambda function, all_: list(function(all_)))
    for _ in Loop(method, train).run():
        pass
    return Answerer.load(method.result())


def test_a_decoder_learns_to_recall_what_attention_cannot_see() -> None:
    """The tiny decoder, really trained: unseen keys in earlier segments, a quarter of them told twice."""
    short = {"epochs": 12, "recall.episodes": 160, "recall.pairs": (16, 32)}
    knowing = trained(settings("slots", **short))
    found = examine(knowing.backbone.model, start_token(knowing.backbone), pairs=64, episodes=4, seed=10**6)
    assert sum(found.right) / len(found.right) >= 0.97
    assert sum(found.stale) <= 2


def test_without_a_memory_there_is_only_chance() -> None:
    blind = trained(settings("none", epochs=2, **{"recall.episodes": 32, "recall.pairs": (16,)}))
    found = examine(blind.backbone.model, start_token(blind.backbone), pairs=64, episodes=16, seed=10**6)
    assert sum(found.right) / len(found.right) < 5 * CHANCE
    assert found.slots == 0


def test_epochs_draw_fresh_episodes_and_take_turns_at_the_lengths() -> None:
    recipe = settings("slots", **{"recall.pairs": (16, 64), "recall.episodes": 8})
    method = RecallMethod(Answerer.load(Bundle.initial(recipe)), TrainingSet(), recipe.train, Sharing())
    first, second, third = (method.tasks_of(epoch) for epoch in range(3))
    assert [{task.pairs for task in epoch} for epoch in (first, second, third)] == [{16}, {64}, {16}]
    assert len({task.seed for task in [*first, *second, *third]}) == 24
    assert first == method.tasks_of(0)
