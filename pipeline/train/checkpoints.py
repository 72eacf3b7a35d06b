"""The files that a run goes on from: one, or, where the learner is sharded, also each rank's part beside it.

``trainer.pt``  the loop's state, written by rank 0; of sharded tensors it holds shape and type alone
``shards/``     those tensors, every rank's part written by itself (``torch.distributed.checkpoint``)

Either is read by any number of ranks, sharded or not. ``shards/.metadata`` is read as pickle: a run's folder is as
trusted as its code.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.tensor import DTensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_only

from pipeline.train.distributed import rank_and_world

TRAINER_FILE, SHARDS = "trainer.pt", "shards"


def save_state(state: dict[str, Any], folder: Path) -> bool:
    """Write this rank's files of ``state`` (:meth:`Loop.state`), on every rank at once.

    Returns whether there are parts: then every rank's folder belongs to the checkpoint, else rank 0's alone.
    """
    parts = {name: value for name, value in _named(state).items() if isinstance(value, DTensor)}
    if parts:
        save_parts(parts, checkpoint_id=folder / SHARDS)
    if rank_and_world()[0] == 0:
        torch.save(tree_map_only(DTensor, _without_data, state), folder / TRAINER_FILE)
    return bool(parts)


def load_state(folder: Path) -> dict[str, Any]:
    """What ``save_state`` was given; what was sharded is a tensor without data, for :func:`fill`."""
    state: dict[str, Any] = torch.load(folder / TRAINER_FILE, weights_only=True)
    return state


def fill(state: dict[str, Any], folder: Path) -> None:
    """Read into the tensors of ``state`` what the parts in ``folder`` hold of them, on every rank at once."""
    if not (folder / SHARDS).exists():
        return
    saved = FileSystemReader(folder / SHARDS).read_metadata().state_dict_metadata
    wanted = {name: value for name, value in _named(state).items() if name in saved}
    with _alone_too():
        load_parts(wanted, checkpoint_id=folder / SHARDS)


def _without_data(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _named(state: dict[str, Any]) -> dict[str, Any]:
    """Every value of a tree by its path."""
    return {keystr(path): value for path, value in tree_flatten_with_path(state)[0]}


@contextmanager
def _alone_too() -> Iterator[None]:
    """torch warns that a process without a group reads by itself, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
