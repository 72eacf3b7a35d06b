"""Runs: parameters, metrics and files of one piece of work, written by the driver and by nobody else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.home import Home
from pipeline.tracking.client import client, experiment_id

if TYPE_CHECKING:
    from pipeline.evaluate.result import Result

LARGEST_BATCH = 1000  # metrics that MLflow takes in one request


@dataclass(frozen=True)
class Run:
    """An open MLflow run."""

    home: Home
    id: str

    def params(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        client(self.home).log_batch(self.id, params=[Param(key, str(value)) for key, value in values.items()])

    def metrics(self, values: Mapping[str, float], *, step: int = 0, model_id: str | None = None) -> None:
        """``model_id`` ties the figures to a logged model as well as to the run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(key, float(value), now, step, model_id=model_id, run_id=self.id) for key, value in values.items()
        ]
        for start in range(0, len(metrics), LARGEST_BATCH):
            client(self.home).log_batch(self.id, metrics=metrics[start : start + LARGEST_BATCH])

    def artifact(self, path: Path) -> None:
        client(self.home).log_artifact(self.id, str(path))


@contextmanager
def run(
    home: Home,
    name: str,
    *,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    parent: str | None = None,
) -> Iterator[Run]:
    """A run named ``name``, below the run with id ``parent`` if given; FAILED when the body raises."""
    tracking = client(home)
    labels = {key: str(value) for key, value in (tags or {}).items()}
    if parent:
        labels["mlflow.parentRunId"] = parent
    created = tracking.create_run(experiment_id(home), tags=labels, run_name=name)
    opened = Run(home, created.info.run_id)
    status = "FAILED"
    try:
        opened.params(params or {})
        yield opened
        status = "FINISHED"
    finally:
        tracking.set_terminated(opened.id, status)


def result_run(home: Home, name: str, result: Result, params: Mapping[str, Any], files: Sequence[Path]) -> None:
    """One finished run out of a result: its figures as ``system/length/metric``, and its files."""
    figures = {
        f"{system}/{length}/{metric}": figure.value
        for system, lengths in result.systems.items()
        for length, cell in lengths.items()
        for metric, figure in cell.items()
    }
    with run(home, name, params=params) as opened:
        opened.metrics(figures)
        for file in files:
            opened.artifact(file)
