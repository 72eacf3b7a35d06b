"""What is installed: the wheel, its dependencies, and the layers of the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# room: the rooms that it may import
LAYERS = {
    "pipeline": {"pipeline"},
    "serve": {"pipeline", "serve"},
    "jobs": {"pipeline", "serve", "jobs"},
}
ROOMS = set(LAYERS) | {"tests"}


def imported(path: Path) -> Iterator[str]:
    """The top-level names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", LAYERS)
def test_a_room_imports_only_what_lies_beneath(room: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / room).rglob("*.py")
        for name in imported(path)
        if name in ROOMS - LAYERS[room]
    }
    assert not wrong


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in a wheel built from this checkout."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(out.glob("autogpt_memory-*.whl"))) as archive:
        return archive.namelist()


def test_the_wheel_has_the_rooms_and_no_tests(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert top == set(LAYERS)
    assert not [name for name in wheel if "test" in Path(name).name or "__pycache__" in name]


def test_the_wheel_has_the_examples(wheel: list[str]) -> None:
    examples = {str(path.relative_to(ROOT / "examples")) for path in (ROOT / "examples").rglob("*.yaml")}
    assert {f"pipeline/_examples/{name}" for name in examples} <= set(wheel)
    assert [name for name in wheel if name.startswith("pipeline/_examples/world_changes/")]


def test_the_wheel_has_every_data_file(wheel: list[str]) -> None:
    kinds = {".html", ".j2", ".mako", ".safetensors", ".json", ".jsonl", ".txt", ".css", ".js"}
    data = {str(p.relative_to(ROOT)) for room in LAYERS for p in (ROOT / room).rglob("*") if p.suffix in kinds}
    assert data <= set(wheel)


def test_every_dependency_gives_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("\ndependencies = [") : text.index("]\n\n[project.optional-dependencies]")]
    lines = [line for line in block.splitlines() if line.lstrip().startswith('"')]
    assert lines
    assert not [line for line in lines if not re.search(r'",\s+# \w', line)]


def test_every_dependency_is_pinned_and_the_pin_is_in_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pairs}
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    """Importing the tree and the command line loads neither Ray nor torch, and writes nothing."""
    script = (
        "import sys, pipeline.config, pipeline.home, jobs.cli; print({'ray', 'torch', 'mlflow'} & set(sys.modules))"
    )
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr
    assert not list(tmp_path.iterdir())
