"""One replica's parts, put together: event log, lesson memory, engine, and what keeps them in step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pipeline.config import Recipe
from pipeline.evaluate.protocol import prompt_messages
from pipeline.feedback.curation import Curator
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.keys import KeyRing
from pipeline.feedback.privacy import Redactor
from pipeline.home import Home
from pipeline.memory.router import load_router
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Viewer
from pipeline.model.encoder import load_encoder
from serve.auth import Gatekeeper
from serve.canary import read_canary
from serve.champion import ChampionLoader
from serve.decode_loop import Served
from serve.engine import BatchEngine, EngineRequest
from serve.follower import ChampionFollower, LessonFollower, forever
from serve.limits import RateLimiter
from serve.metrics import Meters
from serve.recorder import Recorder
from serve.watermark import Watermark

CHAMPION_POLL_S = 0.5
EXPORT_EVERY_S = 5.0  # Ray itself passes its metrics on every 10 s
READY_QUESTION = "What is the capital of France?"
READY_TIMEOUT_S = 20.0


@dataclass
class Service:
    home: Home
    recipe: Recipe
    log: EventLog
    curator: Curator
    memory: LessonMemory
    engine: BatchEngine
    recorder: Recorder
    gatekeeper: Gatekeeper
    lesson_follower: LessonFollower
    champion_follower: ChampionFollower
    meters: Meters
    limiter: RateLimiter
    _background: list[asyncio.Task[None]] = field(default_factory=list)
    _exercise: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, home: Home, recipe: Recipe, *, nodes: int = 1) -> Service:
        """Blocking: loads the champion and an empty memory. :meth:`start` fills the memory and begins to follow."""
        database = open_database(home.events_url, nodes=nodes)
        loader = ChampionLoader(home, database, recipe.serve)
        log = EventLog(database, redactor=Redactor.of(recipe.feedback))
        return cls.assemble(home, recipe, log, loader.first(), loader.current, loader.load)

    @classmethod
    def assemble(
        cls,
        home: Home,
        recipe: Recipe,
        log: EventLog,
        served: Served,
        current: Callable[[], tuple[int, int] | None],
        load: Callable[[int, Served], Served],
    ) -> Service:
        """The parts around a model that is loaded; ``current`` and ``load`` say what to follow."""
        meters, serve = Meters(), recipe.serve
        memory = LessonMemory(load_encoder(recipe.model.encoder), served.router or load_router(), recipe.memory)
        engine = BatchEngine(
            served,
            memory,
            recipe.memory,
            Watermark(),
            max_batch=serve.max_batch,
            threads=serve.threads_per_replica,
        )
        curator = Curator(recipe.feedback.curation, memory.trust_of)
        poll_s = serve.poll_ms / 1000
        champion_poll_s = max(poll_s, CHAMPION_POLL_S)
        _watch(meters, engine)
        return cls(
            home=home,
            recipe=recipe,
            log=log,
            curator=curator,
            memory=memory,
            engine=engine,
            recorder=Recorder(log, curator),
            gatekeeper=Gatekeeper(KeyRing(log.engine)),
            lesson_follower=LessonFollower(log, memory, engine, poll_s),
            champion_follower=ChampionFollower(
                current, load, engine, meters, champion_poll_s, partial(read_canary, home)
            ),
            meters=meters,
            limiter=RateLimiter(serve.requests_per_minute / serve.most_replicas),
        )

    async def start(self) -> None:
        """Catch up with the log before anything is answered, then follow it."""
        await self.lesson_follower.catch_up()
        for step, name in (
            (self.lesson_follower.step, "following lessons"),
            (self.champion_follower.step, "following the champion"),
            (self._export, "exporting metrics"),
        ):
            self._background.append(asyncio.create_task(forever(step, name, self.meters), name=name))

    async def _export(self) -> None:
        self.meters.export()
        await asyncio.sleep(EXPORT_EVERY_S)

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.engine.close()
        await self.recorder.close()
        self.meters.export()
        self.champion_follower.close()
        self.log.engine.dispose()

    def alive(self) -> bool:
        return all(not task.done() for task in self._background)

    async def ready(self) -> None:
        """Callers at the same time share one exercise: readiness needs no key, so it must stay cheap."""
        if self._exercise is None or self._exercise.done():
            self._exercise = asyncio.create_task(self.exercise())
        await asyncio.shield(self._exercise)

    async def exercise(self) -> None:
        """The whole answer path once: memory, plan, one decoded token, and the log. Raises what is broken."""
        request = EngineRequest(
            messages=prompt_messages(READY_QUESTION),
            question=READY_QUESTION,
            viewer=Viewer(),
            strategy="weights",
            max_new_tokens=1,
            deadline=time.monotonic() + READY_TIMEOUT_S,
        )
        reading = asyncio.get_running_loop().run_in_executor(
            self.engine.memory_thread, self.memory.read, [READY_QUESTION], [Viewer()]
        )
        await asyncio.gather(self.engine.answer(request), reading, asyncio.to_thread(self.log.head))


def _watch(meters: Meters, engine: BatchEngine) -> None:
    for name, about, value in (
        ("agm_running_requests", "requests that decode now", lambda: engine.decoding.depth[0]),
        ("agm_waiting_requests", "requests that wait for a row", lambda: engine.decoding.depth[1]),
        ("agm_lesson_seq", "how far the event log has been followed", lambda: engine.followed.value),
        ("agm_model_version", "the version that answers", lambda: engine.served.version),
    ):
        meters.watch(name, about, value)
