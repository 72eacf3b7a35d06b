"""The example data that ships with the project: in the checkout's ``examples/``, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

_ROOMS = (Path(__file__).parents[2] / "examples", Path(__file__).parents[1] / "_examples")


def example(name: str) -> Path:
    """The path of e.g. ``world_changes/lessons.jsonl``; :class:`FileNotFoundError` says where it was looked for."""
    for room in _ROOMS:
        if (room / name).exists():
            return room / name
    raise FileNotFoundError(f"no example {name!r} in {' or '.join(map(str, _ROOMS))}")
