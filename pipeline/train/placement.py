"""Room on the cluster, asked for before the work starts: a shortage is named instead of waited for in silence."""

from __future__ import annotations

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from pipeline.config import ScalingSettings


class ShortageError(RuntimeError):
    """The cluster cannot place the workers that the recipe asks for."""


def worker_resources(scaling: ScalingSettings) -> dict[str, float]:
    resources = {"CPU": scaling.cpus_per_worker}
    return resources | ({"GPU": scaling.gpus_per_worker} if scaling.use_gpu else {})


def require_room(scaling: ScalingSettings) -> None:
    """Wait for room for all workers at once (an autoscaling cluster grows by this), at most the placement timeout."""
    wanted = worker_resources(scaling)
    group = placement_group([wanted] * scaling.workers, strategy="PACK")
    try:
        if not group.wait(scaling.placement_timeout_s):
            total, free = ray.cluster_resources(), ray.available_resources()
            have = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} free" for kind in wanted)
            asked = " + ".join(f"{amount:g} {kind}" for kind, amount in wanted.items())
            raise ShortageError(
                f"no room after {scaling.placement_timeout_s:g} s for scaling.workers = {scaling.workers} x ({asked}): "
                f"the cluster has {have}; lower scaling.workers or scaling.cpus_per_worker, or add nodes"
            )
    finally:
        remove_placement_group(group)
