"""What a model has answered, kept on disk: greedy answers never change, and evaluations wait for decoding most."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluate.progress import batches
from pipeline.evaluate.protocol import PROTOCOL, Message
from pipeline.evaluate.seam import Generator
from pipeline.model.assets import cache_root

if TYPE_CHECKING:
    from pipeline.memory.mixture import Mixture
    from pipeline.model.answerer import Answerer
    from pipeline.model.bundle import Bundle

SAVED_AFTER = 128  # prompts decoded; what an interruption loses at most
_WAIT_S = 60.0  # for another process that writes


@dataclass(frozen=True)
class CachedAnswer:
    text: str


class AnswerCache:
    """Texts by (model, protocol, prompt) in one SQLite file that any number of processes use at once.

    ``model`` names everything that decides an answer beside the prompt: weights, precision, device.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self._model = model
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL)")

    def key(self, prompt: Sequence[Message], limit: int | None) -> str:
        named = json.dumps([self._model, PROTOCOL, limit, list(prompt)], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()

    def find(self, keys: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        with closing(self._open()) as database:
            for part in batches(keys, 500):
                marks = ",".join("?" * len(part))
                rows = database.execute(f"SELECT key, text FROM answers WHERE key IN ({marks})", list(part))
                found.update(rows.fetchall())
        return found

    def save(self, answers: Mapping[str, str]) -> None:
        """The first answer to a prompt stays, so that processes that race agree afterwards."""
        with closing(self._open()) as database, database:
            database.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", answers.items())

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=_WAIT_S)
        database.execute("PRAGMA journal_mode = WAL")
        return database


def cache_file() -> Path:
    """Where evaluations of this user keep answers."""
    return cache_root() / "answers.db"


def model_name(answerer: Answerer, bundle: Bundle | None = None) -> str:
    """Everything that decides the answers beside the prompt, of the answerer or of another bundle on its weights."""
    bundle, weights = bundle or answerer.bundle, next(answerer.backbone.model.parameters())
    return f"{bundle.base_digest}/{bundle.digest()}/{weights.dtype}/{weights.device.type}"


def forget_answers(path: Path) -> bool:
    """Overwrite every kept answer; evaluations decode them again. Returns whether there was one."""
    if not path.exists():
        return False
    with closing(sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)) as database:
        database.execute("PRAGMA secure_delete = ON")
        if database.execute("SELECT name FROM sqlite_master WHERE name = 'answers'").fetchone() is None:
            return False
        gone = database.execute("DELETE FROM answers").rowcount
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return gone > 0


class CachedGenerator:
    """An answerer that decodes each prompt once."""

    def __init__(self, answerer: Generator, cache: AnswerCache | None = None) -> None:
        self.answerer = answerer
        self._cache = cache
        self._known: dict[str, str] = {}
        self._bypassed = False

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int | None = None,
        mixtures: Sequence[Mixture | None] | None = None,
    ) -> list[CachedAnswer]:
        """Answers from mixtures are not kept: their shares change with every lesson."""
        if self._bypassed or mixtures:
            mixed: dict[str, Any] = {"mixtures": mixtures} if mixtures else {}
            fresh = self.answerer.generate(prompts, max_new_tokens=max_new_tokens, **mixed)
            return [CachedAnswer(answer.text) for answer in fresh]
        keys = [self._key(prompt, max_new_tokens) for prompt in prompts]
        wanted = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        if self._cache:
            self._known |= self._cache.find(list(wanted))
        for part in batches([key for key in wanted if key not in self._known], SAVED_AFTER):
            texts = self.answerer.generate([wanted[key] for key in part], max_new_tokens=max_new_tokens)
            self._keep({key: answer.text for key, answer in zip(part, texts, strict=True)})
        return [CachedAnswer(self._known[key]) for key in keys]

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Decode for real and remember nothing, for measurements of time."""
        self._bypassed = True
        try:
            yield
        finally:
            self._bypassed = False

    def _key(self, prompt: Sequence[Message], limit: int | None) -> str:
        return self._cache.key(prompt, limit) if self._cache else json.dumps([limit, list(prompt)])

    def _keep(self, answers: dict[str, str]) -> None:
        if self._cache:
            self._cache.save(answers)
            answers = self._cache.find(list(answers))
        self._known |= answers
