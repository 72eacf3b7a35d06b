"""The Ray of one command: its own, quiet, with the home in every worker, and gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

COMMAND = """
import os, sys, time, ray
from jobs import local
from pipeline.config import Recipe
from pipeline.home import submitter_home, worker_home

@ray.remote(num_cpus=0.1)
def seen():
    return str(worker_home().root), os.environ["RAY_USAGE_STATS_ENABLED"]

with local.connect(submitter_home().create(), Recipe()):
    with local.connect(submitter_home(), Recipe()):  # the inner one changes nothing
        pass
    print(*ray.get(seen.remote()), flush=True)
    if "wait" in sys.argv:
        time.sleep(600)
"""


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"AGM_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_workers_share_the_home_and_the_terminal_stays_quiet(tmp_path: Path) -> None:
    out, err = start(tmp_path / "home").communicate(timeout=120)
    assert out.split() == [str(tmp_path / "home"), "0"], err
    assert err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path / "home", "wait") as command:
        assert command.stdout
        assert command.stdout.readline()
        started = psutil.Process(command.pid).children(recursive=True)
        assert started
        command.send_signal(number)
        _, err = command.communicate(timeout=60)
    assert command.returncode == (128 + signal.SIGTERM if number == signal.SIGTERM else -signal.SIGINT), err
    assert "*** SIGTERM" not in err
    until = time.monotonic() + 5
    while (left := alive(started)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []
