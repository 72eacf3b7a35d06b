"""``agm serve``, ``ask`` and ``teach`` as a user types them: real model, real HTTP, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "What is the currency of Croatia?"

pytestmark = pytest.mark.timeout(300)


def agm(*arguments: str, url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    env = {**os.environ, "AGM_URL": url}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("agm") / "home"
        patch.setenv("AGM_HOME", str(root))
        patch.setenv("COLUMNS", "200")
        for name in ("AGM_KEY", "AGM_EVENTS_URL", "AGM_MLFLOW_URI", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        yield root


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "jobs.cli", "serve", "--port", "0"]
    errors = home.parent / "errors"
    with (
        open(errors, "w") as stderr,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        yield process
        process.kill()


@pytest.fixture(scope="module")
def url(server: subprocess.Popen[str], home: Path) -> str:
    assert server.stdout
    line = server.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, line + (home.parent / "errors").read_text()
    return found.group()


def test_a_lesson_changes_the_next_answer(url: str) -> None:
    before = agm("ask", QUESTION, url=url)
    assert before.returncode == 0, before.stderr
    assert "\nweights of weights 1.00 · no lesson applies: 1.00 · model version 1" in before.stdout
    taught = agm("teach", QUESTION, "the euro", url=url)
    assert taught.stdout.startswith("1 lesson(s) taught (les_")
    answer, facts, lesson = agm("ask", QUESTION, url=url).stdout.splitlines()
    assert answer == "the euro"
    assert facts.startswith("copy of copy 1.00 · no lesson applies: 0.00 · model version 1")
    assert lesson.strip().startswith("les_")
    assert lesson.endswith(f"{QUESTION} → the euro")


def test_the_memory_can_be_turned_off(url: str) -> None:
    reply = json.loads(agm("ask", QUESTION, "--strategy", "weights", "--json", url=url).stdout)
    assert reply["memory"]["strategy"] == "weights"
    assert reply["memory"]["lessons"] == []


def test_a_file_is_taught_once(url: str, tmp_path: Path) -> None:
    file = tmp_path / "lessons.jsonl"
    file.write_text('{"question": "Who leads Freedonia?", "answer": "Rufus Firefly"}\n')
    assert "1 lesson(s) taught" in agm("teach", "--file", str(file), url=url).stdout
    assert "0 lesson(s) taught, 1 known already" in agm("teach", "--file", str(file), url=url).stdout


def test_status_of_a_running_home(url: str) -> None:
    found = json.loads(agm("status", "--json", url=url).stdout)
    assert found["champion"] == 1
    assert found["events"] > 0


@pytest.mark.usefixtures("url")
def test_ctrl_c_leaves_no_process(server: subprocess.Popen[str], home: Path) -> None:
    """The last test of this file: the endpoint is gone afterwards."""
    started = psutil.Process(server.pid).children(recursive=True)
    server.send_signal(signal.SIGINT)
    server.wait(60)
    _, alive = psutil.wait_procs(started, timeout=5)
    assert alive == []
    errors = (home.parent / "errors").read_text()
    assert "Traceback" not in errors, errors
