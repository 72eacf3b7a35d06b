"""What else ran while a time was taken, and which code it was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import psutil

from pipeline.evaluate.load import Others, machine, watched
from pipeline.revision import package_digest, revision

# Starts a process that works and then waits, and leaves it to nobody: a child of this test would count as its own work.
ORPHAN = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
print(os.getpid(), flush=True)
os.close(1)
while time.process_time() < 0.4:
    pass
time.sleep(60)
"""


def test_own_work_is_not_load_and_others_is() -> None:
    with watched() as others:
        found = subprocess.run([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, check=True)
        process, began = psutil.Process(int(found.stdout)), time.monotonic()
        assert process.ppid() != os.getpid()
        while sum(process.cpu_times()[:2]) < 0.3 and time.monotonic() - began < 120:
            time.sleep(0.02)
    elapsed = time.monotonic() - began
    process.kill()
    assert others.cores >= 0.2 / (elapsed + 30)
    assert (Others(cores=0.0).alone, Others(cores=1.0).alone) == (True, False)


def test_machine_and_revision_are_named() -> None:
    assert machine()["cores"] >= 1
    assert re.fullmatch(r"[0-9a-f]{40}(\+[0-9a-f]{12})?|\d+\.\d+\.\d+\+[0-9a-f]{12}", revision())
    assert re.fullmatch(r"[0-9a-f]{64}", package_digest())
