"""``agm submit`` against a real local cluster: the verb runs there, its output and its exit code come back here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.feedback.database import open_database
from pipeline.home import Home

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# A cluster of this test's own, with a job server, that ends when its input does.
CLUSTER = """
import sys, ray
context = ray.init(address="local", include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=0, num_cpus=2,
                   log_to_driver=False)
print(context.dashboard_url, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_ADDRESS", "AGM_"))}
    return {**inherited, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def job_server(environment: dict[str, str]) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as cluster:
        assert cluster.stdin
        assert cluster.stdout
        url = cluster.stdout.readline().strip()
        assert url, "the cluster did not start"
        yield f"http://{url}"
        cluster.stdin.close()
        cluster.wait(60)


def submit(server: str, environment: dict[str, str], home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", "submit", "--address", server, "--working-dir", str(ROOT), *arguments]
    env = {**environment, "AGM_HOME": str(home)}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.timeout(240)
def test_a_verb_runs_on_the_cluster(job_server: str, environment: dict[str, str], tmp_path: Path) -> None:
    """``agm submit status`` sees the home that the submitter named, and prints what ``agm status`` prints."""
    home = Home(tmp_path / "home").create()
    open_database(home.events_url)
    done = submit(job_server, environment, home.root, "status", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "python -m jobs.status --json" in done.stdout
    printed = done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1]
    assert json.loads(printed)["home"] == str(home.root)


@pytest.mark.timeout(240)
def test_the_exit_code_comes_back(job_server: str, environment: dict[str, str], tmp_path: Path) -> None:
    done = submit(job_server, environment, tmp_path / "no-home", "status")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "is no home yet" in done.stdout


def test_no_job_server_is_told_in_words(environment: dict[str, str], tmp_path: Path) -> None:
    done = submit("http://127.0.0.1:9", environment, tmp_path, "status")
    assert done.returncode == 2
    assert "no job server at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
