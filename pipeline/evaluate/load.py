"""What a measurement of time ran on, and what else ran beside it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.revision import revision

ALONE = 0.15  # cores that others may use while a time still counts as measured alone


@dataclass
class Others:
    """CPU that other processes used while a block ran, in cores; filled in when the block ends."""

    cores: float = 0.0
    _began: dict[int, float] = field(default_factory=dict, repr=False)

    @property
    def alone(self) -> bool:
        return self.cores <= ALONE


@contextmanager
def watched() -> Iterator[Others]:
    """Processes that end inside the block escape it, so that this is a lower bound."""
    others, before, started = Others(), _cpu_seconds(), time.monotonic()
    try:
        yield others
    finally:
        used = sum(max(seconds - before.get(pid, 0.0), 0.0) for pid, seconds in _cpu_seconds().items())
        others.cores = used / max(time.monotonic() - started, 1e-9)


def _cpu_seconds() -> dict[int, float]:
    """CPU seconds so far of every process but this one and its children."""
    own = psutil.Process()
    ours = {own.pid, *(child.pid for child in own.children(recursive=True))}
    times = {p.pid: p.info["cpu_times"] for p in psutil.process_iter(["cpu_times"]) if p.pid not in ours}
    return {pid: found.user + found.system for pid, found in times.items() if found is not None}


def circumstances() -> dict[str, Any]:
    """What every result says of how it was made: machine, moment, code. To be asked before the work begins."""
    return {"machine": machine(), "started": datetime.now(UTC).isoformat(timespec="seconds"), "code": revision()}


def machine() -> dict[str, Any]:
    """The machine in words, and its load average before the work began."""
    import torch

    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
