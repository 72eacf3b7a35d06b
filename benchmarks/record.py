"""What every benchmark writes down beside its figures: when, on what machine, under what load, from which revision."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.revision import revision


def save(path: Path, figures: dict[str, Any]) -> None:
    """``figures`` and their circumstances as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"circumstances": circumstances(), **figures}, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}", file=sys.stderr)


def circumstances() -> dict[str, Any]:
    import torch  # here: a benchmark of peak memory includes what its process has imported

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(Path(word).name if word.startswith("/") else word for word in sys.argv),
        "revision": revision(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "vectors": torch.backends.cpu.get_cpu_capability(),  # AVX2 or AVX512: what matrix products are made with
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1m": os.getloadavg()[0],
    }
