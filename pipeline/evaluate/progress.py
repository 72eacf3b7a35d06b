"""Long work in parts, with a word about how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

Progress = Callable[[int, int], None]  # (total, done)

Item = TypeVar("Item")


def batches(items: Sequence[Item], size: int, progress: Progress | None = None) -> Iterator[Sequence[Item]]:
    """``items`` in order, ``size`` at a time; reports after each part."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
        if progress:
            progress(len(items), min(start + size, len(items)))


@contextmanager
def watched(look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` twice a second while the body runs, and at its end."""
    stop = threading.Event()

    def keep_looking() -> None:
        while not stop.wait(0.5):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()


@contextmanager
def relayed(poll: Callable[[], tuple[int, int] | None], progress: Progress | None) -> Iterator[None]:
    """Pass what ``poll`` sees (total, done) on to ``progress`` while the body runs, and at its end."""
    if progress is None:
        yield
        return

    def tell() -> None:
        if (seen := poll()) is not None:
            progress(*seen)

    with watched(tell):
        yield
