"""How many threads torch takes for an operation, set for one thread of the process."""

from __future__ import annotations

import torch


def use_threads(count: int) -> None:
    """Operations of the calling thread take ``count`` threads.

    Decoding alone may take several. OpenMP's workers wait for the next operation awake only while all of them together
    are no more than the CPUs; asleep, they make a decoding step half as long again.
    """
    torch.get_num_threads()  # a thread that has not asked yet would begin with the count that another one set last
    torch.set_num_threads(count)
