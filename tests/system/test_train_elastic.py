"""A run that grows onto a node that joins, loses that node to SIGKILL, and goes on: the batch stays the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from jobs import local
from pipeline.home import Home
from pipeline.model.bundle import Bundle
from pipeline.train.fit import FitResult, fit
from tests.tiny import tiny_recipe, tiny_training_set


@pytest.mark.trial
def test_a_run_grows_and_outlives_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    changes = {"train.method": "full", "train.optimizer": "sgd", "train.learning_rate": 0.05, "train.epochs": 900}
    changes |= {"train.target_loss": 0.0, "train.checkpoint_steps": 40, "scaling.cpus_per_worker": 1.0}
    elastic = {"scaling.workers": 1, "scaling.max_workers": 2, "scaling.resize_interval_s": 1.0}
    recipe = tiny_recipe(tmp_path / "tiny").with_changes(changes)
    home, champion = Home(tmp_path / "home").create(), tmp_path / "champion"
    Bundle.initial(recipe).save(champion)
    cluster = Cluster(
        initialize_head=True, shutdown_at_exit=False, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    worlds: list[int] = []
    try:
        with local.connect(home, recipe.with_changes(elastic)):

            def train(name: str, changes: dict[str, object]) -> FitResult:
                return fit(
                    home, recipe.with_changes(changes), name=name, champion=champion, data=tiny_training_set(),
                    through_seq=0, cycle=1,
                )  # fmt: skip

            def join_and_die() -> None:
                folder = home.train_storage / "elastic"
                wait(lambda: any(folder.glob("checkpoint_*")))
                node = cluster.add_node(num_cpus=1)
                wait(lambda: workers() == 2)
                worlds.append(2)
                time.sleep(3)
                raylet = node.all_processes["raylet"][0].process.pid
                for process in [psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)]:
                    os.kill(process.pid, signal.SIGKILL)
                wait(lambda: workers() == 1)
                worlds.append(1)

            thread = threading.Thread(target=join_and_die)
            thread.start()
            found = train("elastic", elastic)
            thread.join()
            assert worlds == [2, 1]
            assert found.metrics["step"] == found.metrics["epochs"] * 2
            undisturbed = Bundle.load(train("undisturbed", {"scaling.workers": 1}).bundle)
            for name, tensor in Bundle.load(found.bundle).tensors.items():
                torch.testing.assert_close(tensor, undisturbed.tensors[name], rtol=1e-4, atol=1e-5)
    finally:
        ray.shutdown()
        cluster.shutdown()


def workers() -> int:
    """Of this test's own; a process that is just ending has no command line any more."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie is one, too
            found += "RayTrainWorker" in " ".join(process.cmdline())
    return found


def wait(ready: object) -> None:
    until = time.monotonic() + 300
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.1)
