"""What every test shares: no telemetry, and what happens where an optional part of the system is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.1",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)

ROOT = Path(__file__).resolve().parents[1]

# The optional parts of a system that @pytest.mark.needs(...) names, and how to tell that one is there.
PARTS: dict[str, Callable[[], bool]] = {
    "chromium": lambda: shutil.which("chromium") is not None,
    "git": lambda: shutil.which("git") is not None,
    "make": lambda: shutil.which("make") is not None,
    "postgres": lambda: bool(shutil.which("initdb") or [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]),
}
_missing: dict[str, list[str]] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A stranger's machine skips what it has no part for, and says so at the end; under CI=true that is a failure."""
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("no CUDA device")
    if item.get_closest_marker("dev_data") and not os.environ.get("AGM_DEV_DATA"):
        pytest.skip("AGM_DEV_DATA names no folder")
    for marker in item.iter_markers("needs"):
        _need(item, marker.args[0])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for part, tests in sorted(_missing.items()):
        terminalreporter.write_line(f"missing part of the system: {part} {', '.join(tests)}".rstrip())


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """The development data; use together with ``@pytest.mark.dev_data``."""
    return Path(os.environ["AGM_DEV_DATA"])


@pytest.fixture(scope="session")
def missing_part() -> Callable[[str, str], NoReturn]:
    """``missing_part("postgres", reason)`` for fixtures that look for an optional part of the system themselves."""
    return _without


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own: an erasure empties the user's cache of answers."""
    monkeypatch.setenv("AGM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def home_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ``AGM_HOME`` of this test's own that nothing has been written to yet."""
    root = tmp_path / "home"
    monkeypatch.setenv("AGM_HOME", str(root))
    for name in ("AGM_EVENTS_URL", "AGM_MLFLOW_URI", "AGM_KEY", "AGM_URL"):
        monkeypatch.delenv(name, raising=False)
    return root


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _need(item: pytest.Item, part: str) -> None:
    if not PARTS[part]():
        _missing.setdefault(part, []).append(item.name)
        _without(part, f"this system has no {part}")


def _without(part: str, reason: str) -> NoReturn:
    _missing.setdefault(part, [])
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; under CI=true every optional part has to be there", pytrace=False)
    pytest.skip(reason)
