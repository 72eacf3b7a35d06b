"""A lesson memory on disk: a cache of the event log up to one ``seq``, so that a restart replays only what came after.

For programs and measurements that hold a memory of their own. The endpoint replays the log, and keeps beside it what is
dear in that, encrypted and erased with its event (``pipeline/feedback/vectors.py``): a snapshot is in plain words.

``memory.json`` is written last, and the folder takes its name when it is whole: an interrupted save leaves none.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

from pipeline.config import MemorySettings
from pipeline.memory.belief import Fold, Slot
from pipeline.memory.index import Audience, PartitionedIndex
from pipeline.memory.ledger import Ledger, Vote
from pipeline.memory.trust import Record
from pipeline.memory.types import Lesson

SCHEMA = 3

_FIELDS = [field.name for field in fields(Lesson) if field.name != "beliefs"]
_REPEATED = {"tenant", "scope", "scope_id", "source", "role"}  # few different values: one string object each
_INTEGERS = {"first_seq", "born_seq", "last_seq"}
_ARROW = {**dict.fromkeys(_INTEGERS, pa.int64()), "trust": pa.float64(), "paraphrases": pa.list_(pa.large_string())}


class SnapshotError(ValueError):
    """A snapshot does not fit this memory; the message says why."""


class Key(NamedTuple):
    """What a row of the index stands for."""

    lesson_id: str
    text: str
    audience: Audience


@dataclass
class State:
    """Everything that a memory is, but for its index."""

    encoder: str
    applied_seq: int
    fold: Fold
    keys: list[Key | None]
    free: list[int]


def save(folder: Path, state: State, index: PartitionedIndex) -> None:
    """The caller holds off writers."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    slots = list(state.fold.slots.values())
    feather.write_feather(_slot_table(slots), partial / "lessons.arrow", compression="zstd")
    np.save(partial / "keys.npy", _key_places(slots, state.keys))
    head = {
        "schema": SCHEMA,
        "encoder": state.encoder,
        "applied_seq": state.applied_seq,
        "free": state.free,
        "aliases": [[*key, lesson_id] for key, lesson_id in state.fold.aliases.items()],
        "sources": [[*source, *asdict(record).values()] for source, record in state.fold.sources.records.items()],
        "partitions": index.save(partial),
    }
    (partial / "memory.json").write_text(json.dumps(head), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load(folder: Path, encoder: str, settings: MemorySettings, index: PartitionedIndex) -> State:
    """The saved state, with ``index`` (an empty one) filled."""
    try:
        head = json.loads((folder / "memory.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SnapshotError(f"{folder}: no snapshot here: replay the event log") from None
    if head["schema"] != SCHEMA or head["encoder"] != encoder:
        raise SnapshotError(
            f"{folder}: snapshot of schema {head['schema']} with encoder {head['encoder']!r}, this memory has "
            f"schema {SCHEMA} with {encoder!r}: delete the snapshot and replay the event log"
        )
    fold = Fold(settings)
    fold.aliases = {(tenant, key): lesson_id for tenant, key, lesson_id in head["aliases"]}
    fold.sources.records = {(tenant, name): Record(*counts) for tenant, name, *counts in head["sources"]}
    with _no_collection():
        fold.slots = {slot.header.lesson_id: slot for slot in _slots(folder, settings)}
        keys = _keys(list(fold.slots.values()), np.load(folder / "keys.npy"))
    index.load(folder, head["partitions"])
    return State(head["encoder"], head["applied_seq"], fold, keys, head["free"])


def audience(lesson: Lesson) -> Audience:
    """Who reads the lesson; one string object per name, because a million keys name few audiences."""
    return (lesson.tenant, lesson.scope, lesson.scope_id) if lesson.private else (lesson.tenant, "", "")


def _slot_table(slots: list[Slot]) -> pa.Table:
    columns = {
        name: pa.array([getattr(slot.lesson, name) for slot in slots], _ARROW.get(name, pa.large_string()))
        for name in _FIELDS
    }
    return pa.table({**columns, "ledger": pa.array([_ledger_text(slot.ledger) for slot in slots], pa.large_string())})


def _ledger_text(ledger: Ledger | None) -> str | None:
    if ledger is None:
        return None
    votes = [[vote.source, vote.answer, vote.value, vote.trust, vote.seq] for vote in ledger.votes.values()]
    return json.dumps([ledger.base, ledger.base_support, votes, ledger.settled])


def _slots(folder: Path, settings: MemorySettings) -> Iterator[Slot]:
    table = feather.read_table(folder / "lessons.arrow", memory_map=False)
    for batch in table.to_batches(max_chunksize=50_000):
        columns: list[list[Any]] = [_column(name, batch.column(name).to_pylist()) for name in _FIELDS]
        for ledger, values in zip(batch.column("ledger").to_pylist(), zip(*columns, strict=True), strict=True):
            named = dict(zip(_FIELDS, values, strict=True))
            if named["last_time"] == named["first_time"]:
                named["last_time"] = named["first_time"]
            yield Slot(Lesson(beliefs={named["answer"]: 1.0}, **named), _ledger(ledger, settings) if ledger else None)


def _column(name: str, values: list[Any]) -> list[Any]:
    if name in _REPEATED:
        return list(map(sys.intern, values))
    return list(map(tuple, values)) if name == "paraphrases" else values


def _ledger(text: str, settings: MemorySettings) -> Ledger:
    base, support, votes, settled = json.loads(text)
    return Ledger(base, support, settings.alpha_min, {vote[0]: Vote(*vote) for vote in votes}, settled)


def _key_places(slots: list[Slot], keys: list[Key | None]) -> np.ndarray:
    """(rows, 2): the slot's place and the phrasing's place in it, -1 for a free row."""
    place = {slot.header.lesson_id: number for number, slot in enumerate(slots)}
    free = (-1, -1)
    places = [(at := place[key.lesson_id], slots[at].header.phrasings.index(key.text)) if key else free for key in keys]
    return np.array(places, dtype=np.int32).reshape(len(keys), 2)


def _keys(slots: list[Slot], places: np.ndarray) -> list[Key | None]:
    known: dict[Audience, Audience] = {}

    def key(at: int, phrasing: int) -> Key | None:
        if at < 0:
            return None
        lesson = slots[at].header
        seen = audience(lesson)
        return Key(lesson.lesson_id, lesson.phrasings[phrasing], known.setdefault(seen, seen))

    return [key(at, phrasing) for at, phrasing in places.tolist()]


@contextmanager
def _no_collection() -> Iterator[None]:
    """A million new objects that all stay: looking for garbage among them would take longer than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
