"""What the train function needs of the other ranks: shares of work, sums, and a learner that is spread over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor, empty
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pipeline.config import TrainSettings
from pipeline.train.learner import Learner


def rank_and_world() -> tuple[int, int]:
    """From the process group, which Ray has set up; one process on its own has none."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(value: Any) -> list[Any]:
    """Every rank's ``value``, on every rank."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, value)
    return parts


def sum_over_ranks(value: float) -> float:
    return float(sum(gathered(value)))


class Sharing:
    """Runs a function over this rank's part of a list and returns every rank's results in the list's order.

    What came out is kept: a resumed run takes it from its checkpoint, so that it goes on with the same keys and the
    same replayed answers on any number of ranks.
    """

    def __init__(self, kept: Sequence[list[Any]] = ()) -> None:
        self.kept: list[list[Any]] = []
        self._known = list(kept)

    def __call__(self, function: Callable[[Sequence[str]], Any], everything: Sequence[str]) -> list[Any]:
        if len(self.kept) < len(self._known):
            self.kept.append(self._known[len(self.kept)])
            return self.kept[-1]
        rank, world = rank_and_world()
        mine = list(function(everything[rank::world])) if everything[rank::world] else []
        # A row of a tensor is pickled with the whole tensor behind it unless it is a copy.
        mine = [item.clone() if isinstance(item, Tensor) else item for item in mine]
        parts = gathered(mine)
        self.kept.append([parts[i % world][i // world] for i in range(len(everything))])
        return self.kept[-1]


def spread(learner: Learner, parallel: str, settings: TrainSettings) -> nn.Module:
    """The learner on all ranks: replicated (``ddp``), or with its weights, gradients and moments sharded (``fsdp``)."""
    device = next(learner.parameters()).device
    world = rank_and_world()[1]
    for block in learner.blocks:
        if settings.activation_checkpointing:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if settings.compile is not None:
            block.compile(backend=settings.compile)
    # Shards are freed after a layer's first backward pass; what is computed again would find its own keys in a cache.
    sharded = world > 1 and parallel == "fsdp"
    learner.reenters = not (sharded or settings.activation_checkpointing or settings.compile)
    if world == 1:
        return learner
    if not sharded:
        return DistributedDataParallel(learner, device_ids=[device.index] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (world,))
    lean = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if bfloat16(settings) else MixedPrecisionPolicy()
    for block in learner.blocks:
        fully_shard(block, mesh=mesh, mp_policy=lean)
    fully_shard(learner, mesh=mesh, mp_policy=lean)
    return learner


@contextmanager
def summing(learner: nn.Module, last: bool) -> Iterator[None]:
    """Gradients cross the network once, after the last part of a batch. Shards do so after each: they hold no more."""
    if last or not isinstance(learner, DistributedDataParallel):
        yield
    else:
        with learner.no_sync():
            yield


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as ``parameter`` lies: on its device, and where it is sharded, this rank's part of it.

    Of a tensor without data (on the device ``meta``) it is the room for it.
    """
    if not isinstance(parameter, DTensor):
        return torch.empty_like(tensor, device=parameter.device) if tensor.is_meta else tensor.to(parameter.device)
    mesh, placements = parameter.device_mesh, parameter.placements
    if tensor.is_meta:
        return empty(tensor.shape, dtype=tensor.dtype, device_mesh=mesh, placements=placements)
    return distribute_tensor(tensor.to(parameter.device), mesh, placements, src_data_rank=None)


def bfloat16(settings: TrainSettings) -> bool:
    """``auto``: on CUDA; a CPU computes in full precision, where runs are compared bit by bit."""
    if settings.precision == "auto":
        return torch.cuda.is_available()
    return settings.precision == "bfloat16"


def autocast(settings: TrainSettings) -> torch.autocast:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16(settings))
