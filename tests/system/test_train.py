"""Real Ray Train on a tiny model: two processes over gloo, equality with one, and a worker that is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import torch

from jobs import local
from pipeline.config import Recipe
from pipeline.evaluate.protocol import prompt_messages
from pipeline.home import Home
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.train.dataset import TrainingSet
from pipeline.train.fit import FitResult, ResumeError, fit
from pipeline.train.placement import ShortageError, require_room
from tests.tiny import LESSONS, UNRELATED, tiny_recipe, tiny_training_set


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with a Ray of its own around it."""
    home = Home(tmp_path_factory.mktemp("home")).create()
    with local.connect(home, Recipe()):
        yield home


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return tiny_recipe(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def champion(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("champion")
    Bundle.initial(recipe).save(folder)
    return folder


def train(home: Home, recipe: Recipe, champion: Path, name: str) -> FitResult:
    data = tiny_training_set()
    return fit(home, recipe, name=name, champion=champion, data=data, through_seq=9, cycle=1)


@pytest.fixture(scope="module")
def by_two(home: Home, recipe: Recipe, champion: Path) -> Bundle:
    return Bundle.load(train(home, recipe, champion, "two").bundle)


def test_two_workers_learn_the_lessons_and_nothing_else(by_two: Bundle, champion: Path) -> None:
    before = Answerer.load(Bundle.load(champion))
    after = Answerer.load(by_two, share=before)
    asked = [prompt_messages(question) for question, _ in LESSONS]
    assert [g.text for g in after.generate(asked)] == [answer for _, answer in LESSONS]
    unrelated = [prompt_messages(question) for question in UNRELATED]
    assert [g.text for g in after.generate(unrelated)] == [g.text for g in before.generate(unrelated)]
    assert (by_two.trained_through_seq, by_two.cycle) == (9, 1)


def test_two_workers_equal_one_at_the_same_global_batch(
    home: Home, recipe: Recipe, champion: Path, by_two: Bundle
) -> None:
    single = recipe.with_changes({"scaling.workers": 1})
    by_one = Bundle.load(train(home, single, champion, "one").bundle)
    assert by_one.memory is not None
    assert by_two.memory is not None
    assert by_one.memory.slots == by_two.memory.slots
    torch.testing.assert_close(by_one.memory.keys, by_two.memory.keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_one.memory.values, by_two.memory.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.trial)])
def test_a_killed_worker_comes_back_and_ends_where_an_undisturbed_run_ends(
    home: Home, recipe: Recipe, champion: Path, workers: int
) -> None:
    """SIGKILL after a checkpoint inside an epoch: the run goes on from it, and its values are the undisturbed run's."""
    changes = {"train.epochs": 400, "train.target_loss": 0.0, "train.batch_size": 3, "train.checkpoint_steps": 50}
    long = recipe.with_changes({**changes, "scaling.workers": workers})  # 3 or more steps to an epoch
    progress, killed = home.train_storage / f"killed-{workers}" / "progress.json", []

    def kill_a_worker() -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            if progress.exists() and list(progress.parent.glob("checkpoint_*")):
                killed.extend(training_processes()[:1])
                for process in killed:
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.02)

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    found = train(home, long, champion, f"killed-{workers}")
    thread.join()
    assert killed
    assert found.metrics["epoch"] == 400
    undisturbed = Bundle.load(train(home, long, champion, f"undisturbed-{workers}").bundle)
    assert Bundle.load(found.bundle).digest() == undisturbed.digest()


def training_processes() -> list[psutil.Process]:
    """This test's own Ray workers that run the train function, and nobody else's."""
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if "RayTrainWorker" in " ".join(p.cmdline())]


def test_the_same_name_returns_the_finished_run(home: Home, recipe: Recipe, champion: Path, by_two: Bundle) -> None:
    again = Bundle.load(train(home, recipe, champion, "two").bundle)
    assert again.digest() == by_two.digest()


def test_a_name_belongs_to_one_run(home: Home, recipe: Recipe, champion: Path, by_two: Bundle) -> None:
    """To go on under a name is to go on with that run; where it runs may change, what it learns may not."""
    other = recipe.with_changes({"train.learning_rate": 0.1, "scaling.workers": 1})
    with pytest.raises(ResumeError, match="another train.learning_rate: go on with"):
        train(home, other, champion, "two")


def test_a_decoder_from_nothing_trains_in_the_same_train_function(home: Home, tmp_path: Path) -> None:
    """Two workers; every weight of the decoder is the update, and the first steps already lower the loss of chance."""
    changes = {"model.base": "scratch:tiny", "model.device": "cpu", "train.method": "recall", "train.epochs": 6}
    changes |= {"train.learning_rate": 3e-3, "train.recall.pairs": (8,), "train.recall.episodes": 64}
    recipe = Recipe().with_changes(changes | {"scaling.nice": 0})
    Bundle.initial(recipe).save(tmp_path)
    found = fit(home, recipe, name="recall", champion=tmp_path, data=TrainingSet((), ()), through_seq=0, cycle=0)
    assert found.metrics["epoch"] == 6
    assert found.metrics["loss"] < 5.545  # log 256
    trained, untrained = (Answerer.load(Bundle.load(folder)).backbone.model for folder in (found.bundle, tmp_path))
    moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), untrained.parameters(), strict=True)]
    assert all(moved)


def test_a_shortage_is_named(home: Home) -> None:
    scaling = Recipe().with_changes({"scaling.cpus_per_worker": 64, "scaling.placement_timeout_s": 1}).scaling
    with pytest.raises(ShortageError, match="scaling.workers = 2 x"):
        require_room(scaling)
    assert ray.is_initialized()
