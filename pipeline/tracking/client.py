"""MLflow as this project uses it: imported late, telemetry off, always told where its database is.

Importing MLflow takes seconds, so nothing here imports it until a driver asks for it; replicas never do.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from pipeline.home import Home

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "agm"

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_CHATTY = ("mlflow.store.db.utils", "mlflow.tracking._model_registry.fluent", "alembic")


def import_mlflow() -> Any:
    """The ``mlflow`` module, with telemetry switched off before its first line runs."""
    os.environ.update(_ENVIRONMENT)
    import mlflow

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def fluent(home: Home) -> Any:
    """``mlflow`` with its process-wide database set to this home's: the fluent calls know no other way."""
    mlflow = import_mlflow()
    mlflow.set_tracking_uri(home.tracking_uri)
    mlflow.set_registry_uri(home.tracking_uri)
    return mlflow


def client(home: Home) -> MlflowClient:
    """A client of this home's tracking store and registry; sets nothing process-wide."""
    found: MlflowClient = import_mlflow().MlflowClient(tracking_uri=home.tracking_uri, registry_uri=home.tracking_uri)
    return found


def experiment_id(home: Home) -> str:
    """The experiment that :meth:`~pipeline.tracking.registry.Registry.initialise` created."""
    experiment = client(home).get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise LookupError(f"{home.tracking_uri} has no experiment {EXPERIMENT!r}: call Registry.initialise() first")
    return str(experiment.experiment_id)
