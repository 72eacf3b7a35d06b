"""Where one installation keeps its state: ``AGM_HOME``.

Whoever submits work resolves the home once (default ``./.agm``) and passes it to every worker as an absolute path;
a worker never guesses, because a relative default would give each worker a home of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

HOME_VARIABLE = "AGM_HOME"
# Storage credentials are not among them: Ray shows a job's environment to whoever sees its dashboard.
PASSED_ON = (
    "AGM_EVENTS_URL", "AGM_MLFLOW_URI", "AGM_FEEDBACK_URL", "AGM_MASTER_KEYS",
    "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ALLOW_HTTP",
)  # fmt: skip


class HomeError(RuntimeError):
    """The home is missing where it has to be known."""


@dataclass(frozen=True)
class Home:
    """Paths under one absolute root; creating the object touches no disk."""

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_absolute():
            raise HomeError(f"{HOME_VARIABLE} must be an absolute path, not {str(self.root)!r}")

    @property
    def events_url(self) -> str:
        """The event log: PostgreSQL through ``AGM_EVENTS_URL``, else SQLite in the home."""
        return os.environ.get("AGM_EVENTS_URL") or f"sqlite:///{self.root / 'events.db'}"

    @property
    def feedback_table(self) -> str:
        """The Delta table of sealed events: an S3-compatible ``AGM_FEEDBACK_URL``, else a folder in the home."""
        return os.environ.get("AGM_FEEDBACK_URL") or str(self.root / "feedback")

    @property
    def tracking_uri(self) -> str:
        return os.environ.get("AGM_MLFLOW_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def cycles(self) -> Path:
        return self.root / "cycles"

    @property
    def train_storage(self) -> Path:
        return self.root / "train"

    @property
    def keys(self) -> Path:
        return self.root / "keys.json"

    def alone(self) -> FileLock:
        """Held while a cycle comes to its end and while copies are erased: neither sees half of what the other does."""
        return FileLock(self.root / "alone.lock")

    def create(self) -> Home:
        for folder in (self.root, self.artifacts, self.cycles, self.train_storage):
            folder.mkdir(parents=True, exist_ok=True)
        return self

    def worker_env(self) -> dict[str, str]:
        """What ``runtime_env["env_vars"]`` must carry so that workers share this home."""
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        return {HOME_VARIABLE: str(self.root), **passed}


def submitter_home() -> Home:
    """The home as the person at the terminal means it: ``AGM_HOME``, else ``./.agm``."""
    return Home(Path(os.environ.get(HOME_VARIABLE, ".agm")).expanduser().resolve())


def worker_home() -> Home:
    """The home inside a Ray worker; unset is an error, never a default."""
    root = os.environ.get(HOME_VARIABLE)
    if not root:
        raise HomeError(f"{HOME_VARIABLE} is not set in this worker: pass Home.worker_env() in runtime_env['env_vars']")
    return Home(Path(root))
