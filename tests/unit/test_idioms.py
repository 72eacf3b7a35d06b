"""Idioms that import and run, and do the wrong thing: none of them is in this code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("pipeline", "jobs", "serve")

# pattern: what is wrong with it, and what to write instead
DEAD = {
    r"ray\.air|from ray import air": "drops metrics and checkpoints in silence: ray.train.report in a train function",
    r"\bsession\.report\(": "Ray's old session: ray.train.report",
    r"Tuner\(\s*trainer": "a Tuner takes a function that launches the trainer",
    r"resume_from_checkpoint\s*=": "Train V2 resumes by (storage_path, name) and ray.train.get_checkpoint()",
    r"Trainer\.restore\(": "Train V2 resumes by (storage_path, name)",
    r"^from ray\.serve import|^import ray\.serve|^from ray import serve$": "hides our room: ray_serve",
    r"transition_model_version_stage|\bstages?=\[": "MLflow's stages are gone: aliases",
    r"\bpickle\b.*\b(load|dump)|torch\.load\((?!.*weights_only=True)": "no pickle: safetensors",
    r"ray\.init\(\s*\)|address=[\"']auto[\"']": "joins a stranger's cluster: jobs.local.connect",
    r"\bray stop\b": "stops other people's Ray too",
    r"index-url\s*=?\s*https?://|pypi\.org": "no registry address in the code",
    r"mock\.patch|MagicMock": "fakes and real parts instead of patches",
}


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("pattern", DEAD)
def test_no_dead_idiom(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}  ({DEAD[pattern]})"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, "\n".join(found)


def test_files_stay_readable() -> None:
    assert not [str(path.relative_to(ROOT)) for path in sources() if len(path.read_text().splitlines()) > 400]
