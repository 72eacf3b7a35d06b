"""What an update learns and what it leaves alone, on a tiny model and without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config import Recipe, TrainSettings
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import BundleError
from pipeline.train.dataset import TrainingSet
from pipeline.train.kept import Kept
from pipeline.train.learner import Method
from pipeline.train.loop import Loop, epoch_batches, run_epoch
from pipeline.train.methods import DenseMethod, LessonTask, MemoryMethod, build_method
from tests.tiny import LESSONS, REPLAY, UNRELATED, tiny_training_set

QUESTIONS = [question for question, _ in LESSONS]
ANSWERS = [answer for _, answer in LESSONS]


def alone(function: Any, everything: Sequence[str]) -> list[Any]:
    """The ``share`` of a single process."""
    return list(function(everything)) if everything else []


def train(answerer: Answerer, data: TrainingSet, settings: TrainSettings) -> tuple[Method, list[float]]:
    method = build_method(answerer, data, settings, alone)
    loop = Loop(method, settings.model_copy(update={"target_loss": 0.0}))
    losses = [run_epoch(loop) for _ in range(settings.epochs)]
    return method, losses


def texts(answerer: Answerer, questions: Sequence[str]) -> list[str]:
    return [answer.text for answer in answerer.generate([prompt_messages(question) for question in questions])]


def guessed(answerer: Answerer, questions: Sequence[str], guesses: Sequence[str]) -> list[str]:
    """Answers to right guesses; a wrong one would have to be decoded, and raises."""

    def refused(**_: object) -> None:
        raise AssertionError("a guess was wrong")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answerer.backbone.model, "generate", refused)
        prompts = [prompt_messages(question) for question in questions]
        return [answer.text for answer in answerer.generate(prompts, guesses=guesses)]


def changed(recipe: Recipe, **values: Any) -> TrainSettings:
    return recipe.with_changes({f"train.{name}": value for name, value in values.items()}).train


# the memory method


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.3), ("rmsprop", 0.1), ("sgd", 30.0), ("slot_adam", 1.0)])
def test_new_slots_learn_the_lessons_and_nothing_else_moves(
    recipe: Recipe, base: Answerer, optimizer: str, rate: float
) -> None:
    settings = changed(recipe, optimizer=optimizer, learning_rate=rate, epochs=40)
    method, losses = train(base, tiny_training_set(), settings)
    learned = Answerer.load(method.result(), share=base)
    assert texts(learned, QUESTIONS) == ANSWERS
    assert texts(learned, [f"Question: {question}" for question in QUESTIONS]) == ANSWERS
    assert guessed(learned, QUESTIONS, ANSWERS) == ANSWERS
    assert losses[-1] < 0.2 * losses[0]
    assert texts(learned, UNRELATED) == texts(base, UNRELATED)
    assert texts(learned, REPLAY) == texts(base, REPLAY)
    assert method.result().tensors == {}
    assert [g.slots[0] for g in learned.generate([prompt_messages(q) for q in QUESTIONS])] == [
        f"les_{number}" for number in range(len(LESSONS))
    ]


def test_a_later_cycle_keeps_what_an_earlier_one_learned(recipe: Recipe, base: Answerer) -> None:
    first, _ = train(base, tiny_training_set(2), recipe.train)
    champion = Answerer.load(first.result(), share=base)
    later = TrainingSet(tiny_training_set().items[4:], REPLAY)
    second, _ = train(champion, later, recipe.train)
    assert isinstance(second, MemoryMethod)
    assert second.learner.state_dict()["new_values"].shape[1] == 2
    both = Answerer.load(second.result(), share=base)
    assert texts(both, QUESTIONS) == ANSWERS
    kept = first.result().memory
    assert kept is not None
    assert both.memory is not None
    assert torch.equal(both.memory.values[:, :2], kept.values)


def test_a_correction_of_a_trained_lesson_replaces_its_answer(recipe: Recipe, base: Answerer) -> None:
    first, _ = train(base, tiny_training_set(2), recipe.train)
    champion = Answerer.load(first.result(), share=base)
    corrected = tuple(replace(item, answer="K") for item in tiny_training_set(1).items)
    second, _ = train(champion, TrainingSet(corrected, REPLAY), recipe.train)
    assert texts(Answerer.load(second.result(), share=base), QUESTIONS[:2]) == ["K", ANSWERS[1]]


def test_replayed_prompts_that_reach_a_slot_are_held_to_the_champion(recipe: Recipe, base: Answerer) -> None:
    """The lesson's own question among the replayed prompts: the two pull against each other."""
    data = TrainingSet(tiny_training_set(1).items, (*REPLAY, QUESTIONS[0]))
    free, _ = train(base, data, changed(recipe, replay_ratio=0))
    held, _ = train(base, data, changed(recipe, replay_weight=100.0, replay_ratio=1.0))
    assert free.replay_tasks == []
    assert len(held.replay_tasks) == 1
    assert texts(Answerer.load(free.result(), share=base), QUESTIONS[:1]) == ANSWERS[:1]
    prompt = [prompt_messages(QUESTIONS[0])]
    first = [a.generate(prompt, max_new_tokens=1)[0].text for a in (Answerer.load(held.result(), share=base), base)]
    assert first[0] == first[1] != ANSWERS[0]


def test_replay_is_held_to_what_the_champion_really_says(recipe: Recipe, base: Answerer) -> None:
    """Its own slots and its own reading, also where a corrected lesson has taken its slot."""
    first, _ = train(base, tiny_training_set(2), recipe.train)
    champion = Answerer.load(first.result(), share=base)
    corrected = tuple(replace(item, answer="K") for item in tiny_training_set(1).items)
    method = build_method(champion, TrainingSet(corrected, (*REPLAY, QUESTIONS[0], QUESTIONS[1])), recipe.train, alone)
    assert len(method.replay_tasks) == 2
    with torch.no_grad():
        logits = method.learner.champion_logits(method.replay_tasks)
    tokens = champion.backbone.answer_ids("".join(ANSWERS[:2]))
    assert logits[:, 0].argmax(-1).tolist() == tokens


# dense methods


@pytest.mark.parametrize("method", ["upper:2", "full"])
def test_dense_updates_learn_and_load_as_they_were(recipe: Recipe, base: Answerer, method: str) -> None:
    settings = changed(recipe, method=method, learning_rate=0.01, epochs=40)
    trained, losses = train(base, tiny_training_set(), settings)
    assert isinstance(trained, DenseMethod)
    assert losses[-1] < 0.2 * losses[0]
    served = Answerer.load(trained.result(), share=base)
    assert texts(served, QUESTIONS) == ANSWERS
    batch = served.backbone.batch([served.backbone.prompt(prompt_messages(QUESTIONS[0]))])
    with torch.no_grad():
        assert torch.equal(served.backbone.model(batch.ids).logits, trained.backbone.model(batch.ids).logits)
    names = set(trained.result().tensors)
    upper = {name for name in names if ".layers.2." in name or ".layers.3." in name}
    assert names == upper if method == "upper:2" else "model.embed_tokens.weight" in names
    assert texts(base, QUESTIONS) != ANSWERS  # the champion's own weights are not the ones that were trained


def test_layers_below_the_trained_ones_run_once_for_every_sequence(recipe: Recipe, base: Answerer) -> None:
    data = tiny_training_set()
    method = build_method(base, data, changed(recipe, method="upper:2", replay_ratio=0.5), alone)
    assert isinstance(method, DenseMethod)
    ran: list[int] = []
    for layer in method.backbone.layers:
        layer.mlp.register_forward_hook(lambda _module, inputs, _output: ran.append(len(inputs[0])))
    tasks = [*method.tasks, *method.replay_tasks]
    assert any(task.replayed for task in tasks)
    first = method.learner(tasks, 1.0)
    assert sum(ran) == (2 + 2) * len(tasks)  # two layers to know what enters the third, two that are trained
    ran.clear()
    torch.testing.assert_close(method.learner(list(reversed(tasks)), 1.0), first)
    assert sum(ran) == 2 * len(tasks)
    method.learner.reenters = False
    torch.testing.assert_close(method.learner(tasks, 1.0), first)


def test_what_does_not_fit_into_memory_is_computed_again() -> None:
    computed: list[int] = []

    def compute(things: Sequence[int]) -> list[int]:
        computed.extend(things)
        return [10 * thing for thing in things]

    kept = Kept(range(40), compute, tokens=lambda _thing: 1, token_bytes=1, budget_bytes=20)
    assert kept([3, 39, 3]) == [30, 390, 30]
    assert computed == [*range(16), 39]  # a group of what is kept, and the last one by itself
    assert kept([15, 39]) == [150, 390]
    assert computed == [*range(16), 39, 39]


def test_changed_tensors_that_do_not_fit_are_refused(recipe: Recipe, base: Answerer) -> None:
    bundle = replace(base.bundle, tensors={"model.norm.weight": torch.zeros(3)})
    with pytest.raises(BundleError, match=r"'model.norm.weight' \(3,\) does not fit"):
        Answerer.load(bundle)


# batches


def fake_method(lessons: int, replayed: int) -> Any:
    def tasks(count: int, replay: bool) -> list[Any]:
        return [LessonTask(None, replay, number) for number in range(count)]  # type: ignore[arg-type]

    return SimpleNamespace(tasks_of=lambda _epoch: tasks(lessons, False), replay_tasks=tasks(replayed, True))


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    method, settings = fake_method(20, 30), TrainSettings(batch_size=8, replay_ratio=0.5, seed=3)
    first = list(epoch_batches(method, settings, 0))
    assert first == list(epoch_batches(method, settings, 0))
    assert first != list(epoch_batches(method, settings, 1))
    assert first != list(epoch_batches(method, settings.model_copy(update={"seed": 4}), 0))
    flat = [task for batch in first for task in batch]
    assert sorted(task.index for task in flat if not task.replayed) == list(range(20))
    assert len({task.index for task in flat if task.replayed}) == 10
    assert [len(batch) for batch in first] == [8, 8, 8, 6]


def test_replayed_prompts_are_drawn_evenly_over_the_epochs() -> None:
    """With 10 of 30 drawn per epoch, each stands in a third of 600 epochs: 200 give or take 5 sigma (11.5 each)."""
    method, settings = fake_method(20, 30), TrainSettings(batch_size=64, replay_ratio=0.5)
    drawn = [0] * 30
    for epoch in range(600):
        for batch in epoch_batches(method, settings, epoch):
            for task in batch:
                drawn[task.index] += task.replayed
    assert sum(drawn) == 6000
    assert all(abs(count - 200) < 58 for count in drawn)
