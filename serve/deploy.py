"""Starting and stopping the endpoint on a running Ray: the answerer behind HTTP, and the sealer beside it."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ray
from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve.config import ProxyLocation
from sqlalchemy import Engine

from pipeline.config import Recipe, ServeSettings
from pipeline.feedback import erasure, vectors
from pipeline.feedback.compaction import TidySealer
from pipeline.feedback.database import open_database, opened
from pipeline.feedback.events import EventLog
from pipeline.home import Home, worker_home
from pipeline.tracking.registry import champion_version
from pipeline.train.placement import has_room
from serve.admission import QUEUED_AT_PROXY, REFUSED_AT_ONCE, admitted
from serve.app import build
from serve.body_ahead import CALLBACK
from serve.champion import NoChampion
from serve.serve_yaml import PROXY_GRACE_S, ServeArgs
from serve.service import Service
from serve.threads import use_threads

APP, SEALER_APP = "agm", "agm-sealer"
SEALER_CPUS = 0.05
FREE_PORTS = range(20_000, 32_768)  # above those that Ray gives its workers, below those that Linux gives to anybody
SEAL_EVERY_S = 1.0
START_TIMEOUT_S = 300.0  # after placement: importing torch and loading the weights; or since a lesson was encoded
ENCODED_EVERY_S = 2.0  # how often it is looked how many are
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
# For the controller, whose proxies inherit it: to the replicas by their gRPC servers, which run in any case and ask for
# Ray's token, instead of by actor calls; and a request's body with its head.
PROXY_ENV = {"RAY_SERVE_PROXY_USE_GRPC": "1", "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK}

log = logging.getLogger("serve.deploy")


class DeployError(RuntimeError):
    """The endpoint did not come up; the message says what is missing and what to change."""


@dataclass(frozen=True)
class Endpoint:
    url: str
    model_version: int


@ray_serve.ingress()
class AnswererDeployment:
    """One replica: it catches up with the log before it says that it is ready."""

    def __init__(self, args: ServeArgs, nodes: int) -> None:
        use_threads(1)  # decoding, in a thread of its own, takes more
        self.service = open_service(args, nodes)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build(self.service, echo_request_id=False)

    async def check_health(self) -> None:
        if not self.service.alive():
            raise RuntimeError("a background task of the replica has ended")


class SealerDeployment:
    """Drains the event log to Parquet once a second while there is something new, and finishes erasures."""

    def __init__(self, nodes: int) -> None:
        self._home = worker_home()
        self._log = EventLog(open_database(self._home.events_url, nodes=nodes))
        self._sealer = TidySealer(self._log, self._home.feedback_table)
        self._sealed = 0
        self._task = asyncio.get_running_loop().create_task(self._forever())

    async def _forever(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._drain)
            except Exception:  # the border of the background: the next round begins where the table says
                log.exception("sealing failed; again in %.0f s", SEAL_EVERY_S)
            await asyncio.sleep(SEAL_EVERY_S)

    def _drain(self) -> None:
        head = self._log.head()
        if head > self._sealed:
            self._sealer.drain(head)
            self._sealed = head
        if erasure.plans(self._log, "erasing"):
            from pipeline.feedback.copies import resume  # torch, for the bundles: seconds

            resume(self._home, self._log)

    async def check_health(self) -> None:
        if self._task.done():
            raise RuntimeError("the sealer's task has ended")


def open_service(args: ServeArgs, nodes: int) -> Service:
    """A replica's parts; ``nodes`` that the cluster had when the endpoint was deployed."""
    if args.recipe.serve.max_replicas is not None:
        nodes = max(nodes, _nodes())  # a replica that comes later may come with a node that was not there
    return Service.open(worker_home(), args.recipe, nodes=nodes)


def build_app(args: ServeArgs) -> ray_serve.Application:
    """The answerer's application; every option of the deployment comes from ``args.recipe.serve``."""
    return ray_serve.deployment(**answerer_options(args))(AnswererDeployment).bind(args, _nodes())


def answerer_options(args: ServeArgs) -> dict[str, Any]:
    settings = args.recipe.serve
    return {
        "name": "Answerer",
        "max_ongoing_requests": admitted(settings) + REFUSED_AT_ONCE,
        "max_queued_requests": QUEUED_AT_PROXY,
        "backpressure_config": {"status_code": 429, "retry_after_s": 1},
        "max_constructor_retry_count": 1,
        "ray_actor_options": _actor(args.home, settings.cpus_per_replica, settings.gpus_per_replica),
        **_scale(settings),
    }


def _scale(settings: ServeSettings) -> dict[str, Any]:
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas, "graceful_shutdown_timeout_s": 10.0}
    scaling = {
        "min_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.full_batch,
        "upscale_delay_s": settings.upscale_delay_s,
        "downscale_delay_s": settings.downscale_delay_s,
    }
    # A replica that is not needed any more ends what it has begun.
    return {"autoscaling_config": scaling, "graceful_shutdown_timeout_s": settings.request_timeout_s + PROXY_GRACE_S}


def build_sealer(args: ServeArgs) -> ray_serve.Application:
    deployment = ray_serve.deployment(
        name="Sealer",
        num_replicas=1,
        graceful_shutdown_timeout_s=2.0,
        max_constructor_retry_count=1,
        ray_actor_options=_actor(args.home, SEALER_CPUS),
    )
    return deployment(SealerDeployment).bind(_nodes())


def start(
    home: Home, recipe: Recipe, *, port: int | None = None, say: Callable[[str], None] = lambda _: None
) -> Endpoint:
    """Deploy on the Ray that this process is connected to, and wait until a question can be answered.

    ``port`` 0 takes a free one; ``say`` is told what takes long. Raises :class:`DeployError`; what had been started is
    taken down again.
    """
    if not ray.is_initialized():
        raise DeployError("Ray is not running in this process: call ray.init first")
    host = recipe.serve.host
    chosen = free_port(host, recipe.serve.port if port is None else port)
    if APP in ray_serve.status().applications:
        raise DeployError(f"this Ray cluster serves {APP!r} already: stop it first, or ask the endpoint that is there")
    url = f"http://{_reachable(host)}:{chosen}"
    with opened(home.events_url, nodes=_nodes()) as database:
        if champion_version(database) is None:
            raise NoChampion(f"no model has been promoted in {home.root}: initialise the registry first")
        require_room(recipe)
        try:
            _deploy(ServeArgs(home=str(home.root), recipe=recipe), host, chosen)
            _wait_until_running(database, say)
            return Endpoint(url, _wait_until_ready(url))
        except BaseException:
            stop()
            raise


def stop() -> None:
    """Take the endpoint and the sealer down, and Serve with them unless somebody else's application runs there."""
    if not ray.is_initialized():
        return
    running = set(ray_serve.status().applications)
    if running <= {APP, SEALER_APP}:
        ray_serve.shutdown()
        return
    for name in running & {APP, SEALER_APP}:
        ray_serve.delete(name)


def _deploy(args: ServeArgs, host: str, port: int) -> None:
    timeout = args.recipe.serve.request_timeout_s + PROXY_GRACE_S
    ray_serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options={"host": host, "port": port, "request_timeout_s": timeout},
        logging_config=LOGGING,
        controller_options={"runtime_env": {"env_vars": PROXY_ENV}},
    )
    targets = [
        ray_serve.RunTarget(build_app(args), name=APP, route_prefix="/", logging_config=LOGGING),
        ray_serve.RunTarget(build_sealer(args), name=SEALER_APP, route_prefix=None, logging_config=LOGGING),
    ]
    ray_serve.run_many(targets, wait_for_applications_running=False)


def free_port(host: str, port: int) -> int:
    """``port`` if nothing listens there, or any free one for 0.

    Until Serve's proxy binds it, the processes that Ray starts take ports of their own, so a free one is looked for
    where they take none.
    """
    if port == 0:
        for number in random.SystemRandom().sample(FREE_PORTS, 100):
            with suppress(DeployError):
                return free_port(host, number)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                why = f"serve.host = {host!r}: nothing can listen there on port {port} ({error.strerror})"
                raise DeployError(f"{why}: give an address of this machine, and a port that you may use") from None
            why = f"serve.port = {port} on {host} is taken ({error.strerror})"
            raise DeployError(f"{why}: stop what listens there or choose another port") from None
        return int(probe.getsockname()[1])


def require_room(recipe: Recipe) -> None:
    """Room for the replicas and the sealer, or an error that names the shortage."""
    settings = recipe.serve
    replica = {"CPU": settings.cpus_per_replica}
    if settings.gpus_per_replica:
        replica["GPU"] = settings.gpus_per_replica
    if has_room([replica] * settings.replicas + [{"CPU": SEALER_CPUS}], recipe.scaling.placement_timeout_s):
        return
    found = (ray.cluster_resources(), ray.available_resources())
    asked = f"{settings.replicas} replica(s) with {_amounts(replica)} each, and {SEALER_CPUS} CPU for the sealer"
    has, free = (_amounts({name: amounts.get(name, 0.0) for name in replica}) for amounts in found)
    raise DeployError(
        f"no room for the endpoint within scaling.placement_timeout_s = {recipe.scaling.placement_timeout_s:g} s: "
        f"it asks for {asked}; the cluster has {has}, of which {free} are free. "
        "Lower serve.replicas or serve.cpus_per_replica, or add nodes"
    )


def _amounts(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


class Patience:
    """How long a start may take: ``seconds``, and again from every lesson that is encoded, however many there are."""

    def __init__(self, seconds: float, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock, self._done = seconds, clock, done
        self._until = clock() + seconds

    def ends(self, done: int) -> bool:
        """Whether nothing has moved for too long, ``done`` lessons being encoded now."""
        if done > self._done:
            self._done, self._until = done, self._clock() + self._seconds
        return self._clock() > self._until


def _wait_until_running(database: Engine, say: Callable[[str], None]) -> None:
    """Until both applications run; a failure is told with Serve's own words."""
    at_first = done = vectors.count_kept(database)
    patience, looked = Patience(START_TIMEOUT_S, at_first), time.monotonic()
    while not patience.ends(done):
        apps = ray_serve.status().applications
        states = {name: apps[name].status for name in (APP, SEALER_APP) if name in apps}
        if list(states.values()) == ["RUNNING", "RUNNING"]:
            return
        broken = [name for name, state in states.items() if state in ("DEPLOY_FAILED", "UNHEALTHY")]
        if broken:
            raise DeployError(f"the endpoint failed to start: {_why(apps[broken[0]])}")
        time.sleep(0.2)
        if time.monotonic() - looked > ENCODED_EVERY_S:
            done, looked = vectors.count_kept(database), time.monotonic()
            if done > at_first:
                say(f"starting the endpoint: {done - at_first:,} lessons encoded for it and for every later start")
    told = ", ".join(map(_why, apps.values()))
    raise DeployError(f"the endpoint did not start within {START_TIMEOUT_S:.0f} s: {told}")


def _why(app: Any) -> str:
    told = [app.message, *(deployment.message for deployment in app.deployments.values())]
    return " | ".join(part for part in told if part) or str(app.status)


def _wait_until_ready(url: str) -> int:
    """The model version that answers. Running replicas are not enough: the proxy must route to them."""
    until = time.monotonic() + 60.0
    told = "nothing answers there"
    with httpx.Client(timeout=30.0) as client:
        while time.monotonic() < until:
            try:
                reply = client.get(f"{url}/readyz")
                if reply.status_code == 200 and "model_version" in reply.text:
                    return int(reply.json()["model_version"])
                told = f"HTTP {reply.status_code}: {reply.text[:300]}"
            except httpx.TransportError as error:
                told = str(error)
            time.sleep(0.1)
    raise DeployError(f"{url}/readyz: {told}. Does Serve already run in this cluster with another address?")


def _actor(home: str, cpus: float, gpus: float = 0.0) -> dict[str, Any]:
    passed = {**Home(Path(home)).worker_env(), "TOKENIZERS_PARALLELISM": "false"}
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": passed}}


def _nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
