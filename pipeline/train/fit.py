"""The driver's side of training: place the workers, wait, hand back the newest bundle."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.config import Recipe, Settings
from pipeline.evaluate.progress import Progress, relayed
from pipeline.files import write_whole
from pipeline.home import Home
from pipeline.model.assets import file_digest
from pipeline.train.dataset import TrainingSet
from pipeline.train.placement import require_room, worker_resources
from pipeline.train.worker import BUNDLE_FOLDER, train_worker

PROGRESS_FILE, ASKED_FILE = "progress.json", "asked.json"
RAYS_EXITS = (0, 1)  # of a run that Ctrl-C aborted; a termination that we handle has 128 + its signal


class ResumeError(ValueError):
    """A name that belongs to another run."""


@dataclass(frozen=True)
class FitResult:
    bundle: Path
    metrics: dict[str, Any]


def fit(
    home: Home,
    recipe: Recipe,
    *,
    name: str,
    champion: Path,
    data: TrainingSet,
    through_seq: int,
    cycle: int,
    parent: int | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Any] = (),
) -> FitResult:
    """Train a challenger, started from the champion's weights. The same ``name`` resumes an interrupted run.

    ``callbacks`` are Ray Train's: a tuning trial passes on its reports with one.
    """
    require_room(recipe.scaling)
    folder = home.train_storage / name
    data_file = folder / "training_set.json"
    data.save(data_file)
    _claim(folder, {"model": recipe.model, "train": recipe.train, "started_from": champion, "data": data_file})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "champion": str(champion),
            "data": str(data_file),
            "through_seq": through_seq,
            "cycle": cycle,
            "parent": parent,
            "progress": str(folder / PROGRESS_FILE),
        },
        torch_config=TorchConfig(backend=_backend(recipe)),
        scaling_config=scaling_config(recipe),
        run_config=RunConfig(
            name=name,
            storage_path=str(home.train_storage),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[*callbacks],
        ),
    )
    with relayed(lambda: _steps_done(folder / PROGRESS_FILE), progress), _interruptible():
        result = trainer.fit()
    if result.error is not None or result.checkpoint is None:
        raise RuntimeError(f"training run {name!r} ended without a checkpoint: {result.error}")
    return FitResult(Path(result.checkpoint.path) / BUNDLE_FOLDER, dict(result.metrics or {}))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C means after a training, and out of one, what it meant before.

    Ray Train puts a handler of its own there. It stays behind and swallows the next two, and after it has aborted a
    run the process ends without a word, with 0 or with 1.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread has handlers
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        if ended.code in RAYS_EXITS:
            raise KeyboardInterrupt from ended
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _claim(folder: Path, asked: dict[str, Any]) -> None:
    """A name belongs to one run: the same one may go on, another one may not. Where it runs is free to change."""
    wanted = {name: file_digest(value) if name == "data" else _plain(value) for name, value in asked.items()}
    file = folder / ASKED_FILE
    if not file.exists():
        write_whole(file, json.dumps(wanted, indent=2))
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    if other := _differences(before, wanted):
        raise ResumeError(
            f"{folder} holds a run with another {', '.join(other)}: go on with what it was started with "
            f"({file}), or remove the folder to begin anew"
        )


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Settings) else str(value)


def _differences(before: Any, wanted: Any, at: str = "") -> list[str]:
    """Dotted names of what is not the same."""
    if not (isinstance(before, dict) and isinstance(wanted, dict)):
        return [] if before == wanted else [at]
    names = sorted(before.keys() | wanted.keys())
    return [
        found
        for name in names
        for found in _differences(before.get(name), wanted.get(name), f"{at}.{name}" if at else name)
    ]


def scaling_config(recipe: Recipe) -> ScalingConfig:
    scaling = recipe.scaling
    elastic = scaling.max_workers is not None
    return ScalingConfig(  # type: ignore[call-arg]  # mypy reads the old Train's
        num_workers=(scaling.workers, scaling.max_workers) if elastic else scaling.workers,  # type: ignore[arg-type]
        use_gpu=scaling.use_gpu,
        resources_per_worker=worker_resources(scaling),
        elastic_resize_monitor_interval_s=scaling.resize_interval_s,
    )


def _backend(recipe: Recipe) -> str:
    if recipe.scaling.backend != "auto":
        return recipe.scaling.backend
    return "nccl" if recipe.scaling.use_gpu else "gloo"


def _steps_done(file: Path) -> tuple[int, int] | None:
    """(total, done) from the workers' progress file, {"done": n, "total": m}, once there is one."""
    if not file.exists():
        return None
    tree = json.loads(file.read_text(encoding="utf-8"))
    return tree["total"], tree["done"]
