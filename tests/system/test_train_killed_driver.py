"""SIGKILL of the driver, and Ray with it: the same submission goes on and ends where an undisturbed run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.config import Recipe
from pipeline.home import Home
from pipeline.model.bundle import Bundle
from tests.tiny import tiny_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home")).create()


@pytest.fixture(scope="module")
def recipe(home: Home) -> Recipe:
    changes = {"train.epochs": 300, "train.target_loss": 0.0, "train.batch_size": 3, "train.checkpoint_steps": 40}
    found = tiny_recipe(home.root / "tiny").with_changes({**changes, "scaling.workers": 1})
    Bundle.initial(found).save(home.root / "champion")
    found.write(home.root / "recipe.yaml")
    return found


def driver(home: Home, name: str, recipe: str = "recipe.yaml") -> subprocess.Popen[str]:
    files = [str(home.root / part) for part in ("", "champion", recipe)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "AGM_HOME": str(home.root)}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("fit_forever.py")), *files, name]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)


def finished(process: subprocess.Popen[str]) -> Bundle:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return Bundle.load(Path(out.splitlines()[-1]))


def kill_after_a_checkpoint(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """The driver and everything that it started."""
    family = family_after_a_checkpoint(process, folder, count)
    for member in family:
        if member.is_running():
            os.kill(member.pid, signal.SIGKILL)
    process.communicate()


def family_after_a_checkpoint(process: subprocess.Popen[str], folder: Path, count: int) -> list[psutil.Process]:
    until = time.monotonic() + 180
    while len(list(folder.glob("checkpoint_*/trainer.pt"))) < count:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.02)
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def test_a_killed_driver_goes_on(home: Home, recipe: Recipe) -> None:
    kill_after_a_checkpoint(driver(home, "killed"), home.train_storage / "killed", 2)
    assert list((home.train_storage / "killed").glob("checkpoint_*"))
    went_on, undisturbed = finished(driver(home, "killed")), finished(driver(home, "undisturbed"))
    assert went_on.digest() == undisturbed.digest()


@pytest.mark.trial
def test_a_killed_run_of_two_sharded_workers_goes_on_with_one(home: Home, recipe: Recipe) -> None:
    """Each of the two has written its part of the checkpoint; the bundle ends where one worker's own run ends."""
    for file, parallel, workers in (("two.yaml", "fsdp", 2), ("one.yaml", "ddp", 1)):
        changes = {"train.optimizer": "sgd", "train.learning_rate": 3.0, "train.epochs": 200}
        settings = {"scaling.parallel": parallel, "scaling.workers": workers}
        recipe.with_changes({**changes, **settings}).write(home.root / file)
    folder = home.train_storage / "sharded"
    kill_after_a_checkpoint(driver(home, "sharded", "two.yaml"), folder, 2)
    kept = min(folder.glob("checkpoint_*/trainer.pt")).parent
    assert {file.name for file in (kept / "shards").glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    assert not (kept / "bundle").exists()
    went_on, undisturbed = (finished(driver(home, name, "one.yaml")).memory for name in ("sharded", "alone"))
    assert went_on is not None
    assert undisturbed is not None
    assert went_on.slots == undisturbed.slots
    torch.testing.assert_close(went_on.values, undisturbed.values, rtol=1e-4, atol=1e-4)


def test_ctrl_c_ends_a_training_and_says_so(home: Home, recipe: Recipe) -> None:
    process = driver(home, "interrupted")
    family = family_after_a_checkpoint(process, home.train_storage / "interrupted", 1)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
