"""The whole HTTP application in this process, without Ray: a real event log, encoder, router and engine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from pipeline.config import Recipe
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.keys import KeyRing
from pipeline.home import Home
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from serve.app import build
from serve.champion import AnswererDecoder
from serve.client import Client
from serve.decode_loop import Served
from serve.service import Service
from tests.tiny import tiny_recipe

ROLES = {"asker": "ask", "teacher": "teach", "admin": "admin"}


@dataclass(frozen=True)
class Local:
    url: str
    keys: dict[str, str]
    service: Service
    home: Home

    def client(self, who: str = "teacher") -> Client:
        return Client(self.url, self.keys[who])


@contextmanager
def endpoint(root: Path, recipe: Recipe | None = None, **serve: Any) -> Iterator[Local]:
    """The tiny answerer unless ``recipe`` names another; ``serve`` changes the endpoint's settings."""
    home = Home(root / "home").create()
    recipe = (recipe or tiny_recipe(root / "tiny")).with_changes({f"serve.{name}": v for name, v in serve.items()})
    log = EventLog(open_database(home.events_url))
    ring = KeyRing(log.engine)
    keys = {who: ring.create(who, role) for who, role in ROLES.items()}  # type: ignore[arg-type]
    keys["stranger"] = ring.create("eve", "teach", tenant="elsewhere")
    served = Served(AnswererDecoder(Answerer.load(Bundle.initial(recipe)), recipe.serve), 1)

    def load(version: int, old: Served) -> Served:
        return Served(AnswererDecoder(old.decoder.answerer, recipe.serve), version)  # type: ignore[attr-defined]

    service = Service.assemble(home, recipe, log, served, lambda: (1, 1), load)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(build(service), log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            _until(lambda: server.started)
            yield Local(f"http://127.0.0.1:{port}", keys, service, home)
        finally:
            server.should_exit = True
            thread.join(20)


def _until(holds: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "the endpoint did not start"
        time.sleep(0.02)
