"""The registry of answerers: MLflow holds the bundles, the ``promotions`` table says which one serves."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import Engine

from pipeline.evaluate.gate import Verdict
from pipeline.home import Home
from pipeline.tracking import promotions
from pipeline.tracking.client import EXPERIMENT, client, fluent
from pipeline.tracking.logging import run
from pipeline.tracking.promotions import champion_version

__all__ = ["MODEL_NAME", "Champion", "Registry", "UnknownVersionError", "champion_version"]

MODEL_NAME = "answerer"
REFUSED_KEPT = 5
MODEL_CODE = Path(__file__).with_name("answerer_model.py")
REQUIREMENTS = ["autogpt-memory"]  # stated, because inferring them loads the model and takes a minute


class UnknownVersionError(LookupError):
    """The registry has no such version, or its files are gone."""


@dataclass(frozen=True)
class Champion:
    """The version that serves, and the promotion that said so."""

    version: int
    folder: Path
    promotion_id: int


class Registry:
    """Versions of the answerer; creating the object touches nothing."""

    def __init__(self, home: Home, engine: Engine) -> None:
        self.home = home
        self.engine = engine

    def initialise(self) -> None:
        """Create or migrate MLflow's database and the experiment: once, in the driver, before any worker starts.

        Processes that meet on a fresh database break each other's migrations, hence the lock.
        """
        self.home.create()
        with FileLock(self.home.root / "mlflow.lock"):
            tracking = client(self.home)
            if tracking.get_experiment_by_name(EXPERIMENT) is None:
                tracking.create_experiment(EXPERIMENT, artifact_location=self.home.artifacts.as_uri())
            if not tracking.search_registered_models(f"name='{MODEL_NAME}'"):
                tracking.create_registered_model(MODEL_NAME)
        self.repair_aliases()

    def exists(self) -> bool:
        """Whether :meth:`initialise` has ever run here; asking does not create anything."""
        return champion_version(self.engine) is not None

    def register(
        self,
        folder: Path,
        *,
        cycle: int,
        metrics: Mapping[str, float],
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        parent: str | None = None,
    ) -> int:
        """Log the bundle in ``folder`` as a model from code and register it; returns the new version.

        The run is named after the cycle and stands below the run ``parent`` if given.
        """
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such bundle folder")
        labels = {"cycle": str(cycle), **{key: str(value) for key, value in tags.items()}}
        with run(self.home, f"cycle {cycle}", params=params, tags=labels, parent=parent) as opened:
            model_id = self._log_model(folder, opened.id, params, labels)
            opened.metrics(metrics, model_id=model_id)
        tracking = client(self.home)
        created = tracking.create_model_version(
            MODEL_NAME, f"models:/{model_id}", opened.id, tags=labels, model_id=model_id
        )
        version = int(created.version)
        self._remember_folder(version)
        tracking.set_registered_model_alias(MODEL_NAME, "challenger", str(version))
        return version

    def attach(self, version: int, file: Path) -> None:
        """A file beside the figures of the version's run."""
        tracking = client(self.home)
        tracking.log_artifact(tracking.get_model_version(MODEL_NAME, str(version)).run_id, str(file))

    def made_by(self, cycle: int, **tags: object) -> int | None:
        """The version that a cycle has registered already, with these tags; an interrupted one makes no second."""
        wanted = {"cycle": str(cycle), **{name: str(value) for name, value in tags.items()}}
        versions = client(self.home).search_model_versions(f"name='{MODEL_NAME}'")
        found = [int(v.version) for v in versions if wanted.items() <= dict(v.tags).items()]
        return max(found, default=None)

    def verdict(self, version: int) -> Verdict | None:
        """What the gate has decided about a version."""
        found = promotions.verdict_on(self.engine, version)
        return None if found is None else Verdict.model_validate(found)

    def folder(self, version: int) -> Path:
        """The local folder of a version's bundle; without MLflow where this home has seen the version before."""
        return self.folder_here(version) or self._remember_folder(version)

    def folder_here(self, version: int) -> Path | None:
        """The folder, where this home has seen the version and its files are there; never asks MLflow."""
        note = self._note(version)
        folder = Path(note.read_text(encoding="utf-8")) if note.exists() else None
        return folder if folder is not None and folder.is_dir() else None

    def champion(self) -> Champion | None:
        found = champion_version(self.engine)
        if found is None:
            return None
        promotion_id, version = found
        return Champion(version, self.folder(version), promotion_id)

    def promote(self, version: int, verdict: Verdict | None = None, cycle: int | None = None) -> int:
        """Make ``version`` champion and return the promotion's id; ``verdict=None`` is a person's decision.

        The row commits first and the aliases follow it; a crash in between is mended by :meth:`repair_aliases`.
        """
        verdict = verdict or Verdict(promoted=True, reasons=("decided by hand, without a comparison",), checks=())
        if not verdict.promoted:
            raise ValueError(f"the gate refused version {version}: promote it without the verdict to overrule the gate")
        self.folder(version)  # a version whose files are missing must not become champion
        promotion = promotions.commit_promotion(self.engine, version, verdict.model_dump(mode="json"), cycle)
        self.repair_aliases()
        return promotion.id

    def refuse(self, version: int, verdict: Verdict, cycle: int | None = None) -> None:
        """Record the refusal; the last five refused versions keep their files for inspection, older ones go."""
        promotions.commit_refusal(self.engine, version, verdict.model_dump(mode="json"), cycle)
        self.repair_aliases()
        self._prune()

    def rollback(self) -> int:
        """Return to the champion before this one and give its version. Lessons are not touched."""
        promotion = promotions.commit_rollback(self.engine)
        self.repair_aliases()
        return promotion.version

    def versions(self) -> list[int]:
        """Every registered version that still has its files, oldest first."""
        found = client(self.home).search_model_versions(f"name='{MODEL_NAME}'")
        return sorted(int(version.version) for version in found)

    def repair_aliases(self) -> dict[str, int | None]:
        """Make MLflow's aliases say what the promotion record says; returns those that had to change.

        ``challenger`` is the newest version, as long as it has never served.
        """
        tracking = client(self.home)
        aliases = dict(tracking.get_registered_model(MODEL_NAME).aliases)
        found = {alias: int(version) for alias, version in aliases.items()}
        wanted = self._aliases()
        repaired = {alias: version for alias, version in wanted.items() if found.get(alias) != version}
        for alias, version in repaired.items():
            if version is None:
                tracking.delete_registered_model_alias(MODEL_NAME, alias)
            else:
                tracking.set_registered_model_alias(MODEL_NAME, alias, str(version))
        return repaired

    def _aliases(self) -> dict[str, int | None]:
        rows = promotions.record(self.engine)
        stack = [None, None, *promotions.line(rows)]
        newest = max(self.versions(), default=None)
        served = newest in {row.version for row in rows}
        return {"champion": stack[-1], "previous": stack[-2], "challenger": None if served else newest}

    def _log_model(self, folder: Path, run_id: str, params: Mapping[str, Any], tags: dict[str, str]) -> str:
        """The logged model's id. Not registered here: MLflow's own call for that talks to the terminal."""
        mlflow = fluent(self.home)
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name=MODEL_NAME,
                python_model=str(MODEL_CODE),
                artifacts={"bundle": str(folder)},
                pip_requirements=REQUIREMENTS,
                params={key: str(value) for key, value in params.items()},
                tags=tags,
            )
        return str(logged.model_id)

    def _note(self, version: int) -> Path:
        return self.home.artifacts / "versions" / str(version)

    def _remember_folder(self, version: int) -> Path:
        """Ask MLflow where a version lies and note it, so that replicas need not import MLflow (seconds each)."""
        folder = self._fetch(version)
        note = self._note(version)
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=note.parent, delete=False) as partial:
            partial.write(str(folder))
        Path(partial.name).replace(note)
        return folder

    def _fetch(self, version: int) -> Path:
        mlflow = fluent(self.home)
        try:
            local = mlflow.artifacts.download_artifacts(f"models:/{MODEL_NAME}/{version}")
            model = mlflow.models.Model.load(local)
        except (mlflow.MlflowException, OSError) as error:
            raise UnknownVersionError(f"{MODEL_NAME} version {version}: {error}") from None
        return Path(local, model.flavors["python_function"]["artifacts"]["bundle"]["path"])

    def _prune(self) -> None:
        present = set(self.versions())
        for version in promotions.refused(self.engine)[REFUSED_KEPT:]:
            if version in present:
                self._delete(version)

    def _delete(self, version: int) -> None:
        """Files first, the version last: a crash in between leaves a version that the next refusal deletes."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        tracking = client(self.home)
        model_id = str(tracking.get_model_version(MODEL_NAME, str(version)).source).removeprefix("models:/")
        get_artifact_repository(tracking.get_logged_model(model_id).artifact_location).delete_artifacts()
        self._note(version).unlink(missing_ok=True)
        tracking.delete_logged_model(model_id)
        tracking.delete_model_version(MODEL_NAME, str(version))
