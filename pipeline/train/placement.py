"""Room on the cluster, asked for before the work starts: a shortage is named instead of waited for in silence."""

from __future__ import annotations

import os
from typing import Any

import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.config import ScalingSettings
from pipeline.home import Home, worker_home


class ShortageError(RuntimeError):
    """The cluster cannot place the workers that the recipe asks for."""


def worker_resources(scaling: ScalingSettings) -> dict[str, float]:
    resources = {"CPU": scaling.cpus_per_worker}
    return resources | ({"GPU": scaling.gpus_per_worker} if scaling.use_gpu else {})


def has_room(bundles: list[dict[str, float]], timeout_s: float) -> bool:
    """Reserve ``bundles`` together and give them back at once. Ray itself would wait for room in silence, forever."""
    group = placement_group(bundles, strategy="PACK")
    try:
        return bool(group.wait(timeout_s))
    finally:
        remove_placement_group(group)


def require_room(scaling: ScalingSettings) -> None:
    """Wait for room for all workers at once (an autoscaling cluster grows by this), at most the placement timeout."""
    wanted = worker_resources(scaling)
    if has_room([wanted] * scaling.workers, scaling.placement_timeout_s):
        return
    total, free = ray.cluster_resources(), ray.available_resources()
    have = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} free" for kind in wanted)
    asked = " + ".join(f"{amount:g} {kind}" for kind, amount in wanted.items())
    raise ShortageError(
        f"no room after {scaling.placement_timeout_s:g} s for scaling.workers = {scaling.workers} x ({asked}): "
        f"the cluster has {have}; lower scaling.workers or scaling.cpus_per_worker, or add nodes"
    )


def settle(scaling: ScalingSettings) -> None:
    """In a worker, before it works: it knows its home, or must not start; it is polite, and has its own threads."""
    worker_home()
    os.setpriority(os.PRIO_PROCESS, 0, max(scaling.nice, os.getpriority(os.PRIO_PROCESS, 0)))  # Ray reuses processes
    torch.set_num_threads(scaling.threads_per_worker)


def on_worker(function: Any, home: Home, scaling: ScalingSettings) -> Any:
    """``function`` as a Ray task with a training worker's resources, outside a Tune trial's own placement group.

    The worker imports the function's module and what that needs: seconds of every first task.
    """

    def settled(*arguments: Any) -> Any:
        settle(scaling)
        return function(*arguments)

    resources = worker_resources(scaling)
    return ray.remote(settled).options(
        name=function.__name__,  # what the dashboard calls it
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(None),  # type: ignore[arg-type]  # none: not the trial's
        runtime_env={"env_vars": home.worker_env()},
    )
