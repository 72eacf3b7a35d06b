"""Ray for one command: a cluster of its own on this machine, or the one that ``RAY_ADDRESS`` names."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil

from pipeline.config import Recipe
from pipeline.home import Home

TELEMETRY_OFF = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
RAY_DEFAULTS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a report costs up to one poll, and the default poll is 2 s
    "RAY_worker_niceness": "0",  # by default 15: then whatever else runs here takes the CPUs from who answers people
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # tomorrow's default; today's warns about it
}
OWN_CLUSTER = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # one machine: no node is taken away with notice
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the driver of a submitted job
MINIMUM_CPUS = 2  # logical: on a single core, training and serving still have to be placed side by side
REAP_SECONDS = 5.0


class ShortageError(RuntimeError):
    """The recipe asks for more than this machine has."""


@contextmanager
def connect(home: Home, recipe: Recipe) -> Iterator[None]:
    """Ray, ready for this home; on the way out nothing that was started here is left running.

    Never joins a cluster that it was not told of. Inside a Ray that already runs in this process it does nothing.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    before = _descendants()
    with _terminable():
        try:
            _start(home, recipe)
            with _terminable():  # again: Ray has put a handler of its own there, which prints a stack
                yield
        finally:
            with _undisturbed():
                started = _descendants() - before
                ray.shutdown()
                _reap(started)


def worker_env(home: Home) -> dict[str, str]:
    """``runtime_env["env_vars"]``: the home, no telemetry, and Ray's settings for short runs."""
    chosen = {name: os.environ.get(name, value) for name, value in {**TELEMETRY_OFF, **RAY_DEFAULTS}.items()}
    return {**chosen, **home.worker_env()}


def shortages(recipe: Recipe, resources: Mapping[str, float]) -> list[str]:
    """What ``recipe`` asks for beyond ``resources``, in words; empty where training fits and serving fits."""
    scaling, serving = recipe.scaling, recipe.serve
    workers = max(scaling.workers, 1)
    asked = [
        ("CPU", "scaling.workers x scaling.cpus_per_worker", workers * scaling.cpus_per_worker),
        ("GPU", "scaling.workers x scaling.gpus_per_worker", workers * scaling.gpus_per_worker * scaling.use_gpu),
        ("CPU", "serve.replicas x serve.cpus_per_replica", serving.replicas * serving.cpus_per_replica),
        ("GPU", "serve.replicas x serve.gpus_per_replica", serving.replicas * serving.gpus_per_replica),
    ]
    return [
        f"{field} = {amount:g} {kind}, and this machine has {resources.get(kind, 0):g}: lower it, or set RAY_ADDRESS"
        for kind, field, amount in asked
        if amount > resources.get(kind, 0)
    ]


def _start(home: Home, recipe: Recipe) -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS")
    for name, value in {**TELEMETRY_OFF, **RAY_DEFAULTS, **(OWN_CLUSTER if address is None else {})}.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        **(_own_cluster() if address is None else {"address": address}),
        namespace="agm",
        runtime_env={"env_vars": _not_yet_given(worker_env(home))},
        logging_level=logging.WARNING,
        log_to_driver=bool(os.environ.get("AGM_VERBOSE")),
    )
    if address is None and (missing := shortages(recipe, ray.cluster_resources())):
        raise ShortageError("\n".join(missing))


def _own_cluster() -> dict[str, Any]:
    # A cluster of its own asks for a token without being told; saying so in the environment would come too late
    # for a Ray that is already imported, and it warns that it does so.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    return {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": max(os.cpu_count() or 1, MINIMUM_CPUS),
    }


def _not_yet_given(env: dict[str, str]) -> dict[str, str]:
    """Ray refuses a variable that the submitted job's own ``runtime_env`` gives as well, even with the same value."""
    job = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env") or {}
    return {name: value for name, value in env.items() if name not in job.get("env_vars", {})}


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _reap(started: set[psutil.Process]) -> None:
    """End what outlived Ray's own shutdown: ask, then insist."""
    _, alive = psutil.wait_procs(started, timeout=REAP_SECONDS)
    for process in alive:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(alive, timeout=REAP_SECONDS)
    for process in alive:
        _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the command the way Ctrl-C does, through every ``finally``."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    with _handling(signal.SIGTERM, leave):
        yield


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not interrupt the cleaning up."""
    with _handling(signal.SIGINT, signal.SIG_IGN), _handling(signal.SIGTERM, signal.SIG_IGN):
        yield


@contextmanager
def _handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)
