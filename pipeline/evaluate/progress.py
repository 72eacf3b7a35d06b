"""Long work in parts, with a word about how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Progress = Callable[[int, int], None]  # (total, done)

Item = TypeVar("Item")


def batches(items: Sequence[Item], size: int, progress: Progress | None = None) -> Iterator[Sequence[Item]]:
    """``items`` in order, ``size`` at a time; reports after each part."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
        if progress:
            progress(len(items), min(start + size, len(items)))
