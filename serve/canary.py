"""A share of the traffic on another version, sticky by session: the wish lies in the home, replicas follow it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.home import Home
from pipeline.memory.types import Viewer


class Canary(BaseModel):
    """``share`` of the sessions are answered by ``version``."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: int = Field(ge=1)
    share: float = Field(gt=0, le=1)

    def takes(self, viewer: Viewer) -> bool:
        """The same session, or without one the same user, always gets the same version."""
        who = "\x1f".join((viewer.tenant, viewer.session or viewer.user))
        place = int.from_bytes(hashlib.sha256(who.encode("utf-8", "surrogatepass")).digest()[:8])
        return place < self.share * 2**64


def read_canary(home: Home) -> Canary | None:
    try:
        return Canary.model_validate_json(_path(home).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_canary(home: Home, canary: Canary | None) -> None:
    """Whole or not at all: a replica never reads half of it."""
    if canary is None:
        _path(home).unlink(missing_ok=True)
        return
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=home.root, delete=False) as partial:
        json.dump(canary.model_dump(), partial)
    os.replace(partial.name, _path(home))


def _path(home: Home) -> Path:
    return home.root / "canary.json"
