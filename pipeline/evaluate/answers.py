"""What a model has answered, kept on disk: greedy answers never change, and evaluations wait for decoding most."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.evaluate.progress import batches
from pipeline.evaluate.protocol import PROTOCOL, Message
from pipeline.evaluate.seam import Generator
from pipeline.model.assets import cache_root

if TYPE_CHECKING:
    from pipeline.memory.mixture import Mixture
    from pipeline.model.answerer import Answerer
    from pipeline.model.bundle import Bundle

Value = TypeVar("Value")

SAVED_AFTER = 256  # prompts decoded; what an interruption loses at most
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
        return result_key(self._model, limit, list(prompt))

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
        # A rollback journal: to turn a new file to WAL, SQLite fails at once where another process does the same.
        return sqlite3.connect(self.path, timeout=_WAIT_S)


def result_key(model: str, *named: object) -> str:
    """The key of what ``model`` makes of what is ``named`` (plain data)."""
    told = json.dumps([model, PROTOCOL, *named], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


class Store:
    """Results by key, each found once: for as long as the process lives, and texts in a ``cache`` beyond it."""

    def __init__(self, cache: AnswerCache | None = None) -> None:
        self._cache = cache
        self._known: dict[str, Any] = {}

    def each(
        self,
        keys: Sequence[str],
        find: Callable[[Sequence[int]], Sequence[Value]],
        lasting: Collection[str] = (),
    ) -> list[Value]:
        """The value of each key. ``find`` is given the places in ``keys`` of those that nobody has found yet, in parts;
        the ``lasting`` ones, texts, go into the cache."""
        if self._cache:
            self._known |= self._cache.find([key for key in keys if key in lasting and key not in self._known])
        missing = {key: place for place, key in enumerate(keys) if key not in self._known}
        for part in batches(list(missing), SAVED_AFTER):
            found = dict(zip(part, find([missing[key] for key in part]), strict=True))
            self._known |= found
            if self._cache and (texts := {key: str(found[key]) for key in part if key in lasting}):
                self._cache.save(texts)
                self._known |= self._cache.find(list(texts))  # another process may have been first
        return [self._known[key] for key in keys]


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


class Switch:
    """Whether what is kept may be used."""

    def __init__(self) -> None:
        self.on = True

    @contextmanager
    def off(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True


class CachedGenerator:
    """An answerer that decodes each prompt once. Whoever keeps something else beside it asks the same switch."""

    def __init__(self, answerer: Generator, cache: AnswerCache | None = None) -> None:
        self.answerer = answerer
        self.kept = Switch()
        self._cache = cache
        self._store = Store(cache)

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int | None = None,
        mixtures: Sequence[Mixture | None] | None = None,
    ) -> list[CachedAnswer]:
        """Answers from mixtures are not kept: their shares change with every lesson."""
        if not self.kept.on or mixtures:
            mixed: dict[str, Any] = {"mixtures": mixtures} if mixtures else {}
            fresh = self.answerer.generate(prompts, max_new_tokens=max_new_tokens, **mixed)
            return [CachedAnswer(answer.text) for answer in fresh]
        keys = [self._key(prompt, max_new_tokens) for prompt in prompts]
        by_length = sorted(range(len(prompts)), key=lambda place: sum(len(m["content"]) for m in prompts[place]))

        def decoded(places: Sequence[int]) -> list[str]:
            asked = [prompts[by_length[place]] for place in places]  # each part of like lengths: little is padded
            return [answer.text for answer in self.answerer.generate(asked, max_new_tokens=max_new_tokens)]

        texts = self._store.each([keys[place] for place in by_length], decoded, lasting=set(keys))
        found = dict(zip(by_length, texts, strict=True))
        return [CachedAnswer(found[place]) for place in range(len(keys))]

    def bypassed(self) -> AbstractContextManager[None]:
        """Decode for real and remember nothing, for measurements of time."""
        return self.kept.off()

    def _key(self, prompt: Sequence[Message], limit: int | None) -> str:
        return self._cache.key(prompt, limit) if self._cache else json.dumps([limit, list(prompt)])
