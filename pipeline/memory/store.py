"""The lesson memory: a fold of events, an index over the lessons' phrasings, and the reading of both."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import MemorySettings
from pipeline.feedback.records import Event
from pipeline.memory.belief import Fold, Ledger, Slot, Vote
from pipeline.memory.features import Pair
from pipeline.memory.index import ExactIndex, Rows, Vectors
from pipeline.memory.router import Router, weights_with_null
from pipeline.memory.segments import segments
from pipeline.memory.types import Lesson, Reading, SlotWeight, Viewer, question_key
from pipeline.model.encoder import Encoder

SNAPSHOT_SCHEMA = 1
NARROWER = {"session": 2, "user": 1}  # a narrower scope beats a wider one for the viewer who sees both
EVERYBODY = 0


class SnapshotError(ValueError):
    """A snapshot does not fit this memory; the message says why."""


@dataclass(frozen=True)
class Candidate:
    """A lesson that the first stage found: one of its phrasings, and the part of the question that lies nearest."""

    lesson: Lesson
    phrasing: str
    part: str
    cosine: float


class LessonMemory:
    """One writer (``apply``) beside any number of readers, who see the memory before or after a batch of events."""

    def __init__(self, encoder: Encoder, router: Router, settings: MemorySettings | None = None) -> None:
        self.encoder = encoder
        self.router = router
        self.settings = settings or MemorySettings()
        self.applied_seq = 0
        self._fold = Fold(self.settings)
        self._index = ExactIndex(encoder.dimension)
        self._rows: dict[str, dict[str, int]] = {}  # lesson -> phrasing -> row
        self._phrasings: dict[int, tuple[str, str]] = {}  # row -> (lesson, phrasing)
        self._numbers: dict[str, int] = {}  # tenants and owners to the numbers in the index's labels
        self._lock = threading.RLock()
        self._writing = threading.Lock()

    # writing

    def apply(self, events: Iterable[Event]) -> int:
        """Fold events in; those at or below ``applied_seq`` are known already. Returns the new ``applied_seq``."""
        with self._writing:
            fresh = sorted((event for event in events if event.seq > self.applied_seq), key=lambda event: event.seq)
            texts = list(dict.fromkeys(text for event in fresh for text in self._unknown(event)))
            vectors = dict(zip(texts, self.encoder.encode(texts), strict=True)) if texts else {}
            with self._lock:
                changed: dict[str, None] = {}
                for event in fresh:
                    changed |= dict.fromkeys(sorted(self._fold.step(event)))
                    self.applied_seq = event.seq
                for lesson_id in changed:
                    self._reindex(lesson_id, vectors)
            return self.applied_seq

    def _unknown(self, event: Event) -> list[str]:
        """The wordings in the event that its lesson has no key for yet: encoded before the readers are held up."""
        if event.kind != "lesson" or event.body["op"] != "correct":
            return []
        known = self._rows.get(event.body["lesson_id"], {})
        return [text for text in (event.body["question"], *(event.body.get("paraphrases") or ())) if text not in known]

    def _reindex(self, lesson_id: str, vectors: dict[str, Vectors]) -> None:
        slot = self._fold.slots.get(lesson_id)
        wanted = dict.fromkeys(slot.lesson.phrasings if slot else ())
        rows = self._rows.setdefault(lesson_id, {})
        gone = [text for text in rows if text not in wanted]
        self._index.remove(np.array([self._forget(rows.pop(text)) for text in gone], dtype=np.int64))
        new = [text for text in wanted if text not in rows]
        if slot and new:
            keys = np.stack([self._vector(text, vectors) for text in new])
            added = self._index.add(keys, np.array([self._label(slot.lesson)] * len(new), dtype=np.int64))
            self._remember(lesson_id, new, added)
        if not slot:
            del self._rows[lesson_id]

    def _vector(self, text: str, vectors: dict[str, Vectors]) -> Vectors:
        """A phrasing's key: just encoded, or, for a lesson copied into a user's scope, encoded now."""
        vector: Vectors = vectors[text] if text in vectors else self.encoder.encode([text])[0]
        return vector

    def _remember(self, lesson_id: str, texts: list[str], rows: Rows) -> None:
        for text, row in zip(texts, rows.tolist(), strict=True):
            self._rows[lesson_id][text] = row
            self._phrasings[row] = (lesson_id, text)

    def _forget(self, row: int) -> int:
        del self._phrasings[row]
        return row

    def _label(self, lesson: Lesson) -> tuple[int, int]:
        tenant = self._numbers.setdefault(f"tenant:{lesson.tenant}", len(self._numbers) + 1)
        if lesson.scope not in NARROWER:
            return tenant, EVERYBODY
        owner = f"{lesson.scope}:{lesson.scope_id}"
        return tenant, self._numbers.setdefault(owner, len(self._numbers) + 1)

    # reading

    def read(self, questions: Sequence[str], viewers: Sequence[Viewer]) -> list[Reading]:
        """One reading per question: softmax over the viewer's lessons and the null slot."""
        if len(questions) != len(viewers):
            raise ValueError(f"{len(questions)} questions but {len(viewers)} viewers: pass one viewer per question")
        if not self._phrasings or not questions:
            return [Reading() for _ in questions]
        parts = [segments(question) for question in questions]
        vectors = iter(self.encoder.encode([part for own in parts for part in own]))
        asked = [{part: next(vectors) for part in own} for own in parts]
        with self._lock:
            found = [self._candidates(own, viewer) for own, viewer in zip(asked, viewers, strict=True)]
            size = len(self)
        pairs = [pair for asking, near in enumerate(found) for pair in _pairs(asking, near, size)]
        log_odds = self.router.score(pairs) if pairs else np.zeros(0)
        ends = np.cumsum([len(near) for near in found])[:-1]
        return [_reading(near, part) for near, part in zip(found, np.split(log_odds, ends), strict=True)]

    def _candidates(self, asked: Mapping[str, Vectors], viewer: Viewer) -> list[Candidate]:
        """The phrasings of believed lessons that lie nearest to any part of the question, nearest first."""
        tenant = self._numbers.get(f"tenant:{viewer.tenant}", -2)
        owners = [EVERYBODY]
        for scope, owner in (("user", viewer.user), ("session", viewer.session)):
            if owner and f"{scope}:{owner}" in self._numbers:
                owners.append(self._numbers[f"{scope}:{owner}"])
        nearest: dict[int, tuple[float, str]] = {}
        for part, vector in asked.items():
            rows, cosines = self._index.search(vector, tenant, tuple(owners), self.settings.candidates)
            for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True):
                nearest[row] = max(nearest.get(row, (-1.0, "")), (cosine, part))
        ranked = sorted(nearest.items(), key=lambda item: (-item[1][0], item[0]))[: self.settings.candidates]
        found = []
        for row, (cosine, part) in ranked:
            lesson_id, phrasing = self._phrasings[row]
            lesson = self._fold.slots[lesson_id].lesson
            if lesson.believed:
                found.append(Candidate(lesson, phrasing, part, cosine))
        return _without_overruled(found)

    # listing

    def lessons(self, viewer: Viewer, search: str = "", offset: int = 0, limit: int = 50) -> list[Lesson]:
        """The viewer's lessons, latest first, whose question, answer or phrasing contains ``search``."""
        wanted = search.casefold()
        with self._lock:
            visible = [slot.lesson for slot in self._fold.slots.values() if slot.lesson.visible_to(viewer)]
        hits = [lesson for lesson in visible if wanted in "\n".join((*lesson.phrasings, lesson.answer)).casefold()]
        hits.sort(key=lambda lesson: (-lesson.last_seq, lesson.lesson_id))
        return hits[offset : offset + limit]

    def get(self, lesson_id: str) -> Lesson | None:
        slot = self._fold.slots.get(lesson_id)
        return slot.lesson if slot else None

    def __len__(self) -> int:
        return len(self._fold.slots)

    # snapshots: a cache of the log, keyed by seq

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            state = {
                "schema": SNAPSHOT_SCHEMA,
                "encoder": self.encoder.name,
                "applied_seq": self.applied_seq,
                "numbers": self._numbers,
                "phrasings": {row: list(name) for row, name in self._phrasings.items()},
                "slots": [asdict(slot) for slot in self._fold.slots.values()],
            }
            used = self._index.used
            np.save(folder / "keys.npy", self._index.vectors[:used])
            np.save(folder / "labels.npy", self._index.labels[:used])
            (folder / "memory.json").write_text(json.dumps(state), encoding="utf-8")

    @classmethod
    def load(
        cls, folder: Path, encoder: Encoder, router: Router, settings: MemorySettings | None = None
    ) -> LessonMemory:
        """The memory as it was saved; ``apply`` continues after its ``applied_seq``."""
        state = json.loads((folder / "memory.json").read_text(encoding="utf-8"))
        if state["schema"] != SNAPSHOT_SCHEMA or state["encoder"] != encoder.name:
            raise SnapshotError(
                f"{folder}: snapshot of schema {state['schema']} with encoder {state['encoder']!r}, this memory has "
                f"schema {SNAPSHOT_SCHEMA} with {encoder.name!r}: delete the snapshot and replay the event log"
            )
        memory = cls(encoder, router, settings)
        memory.applied_seq, memory._numbers = state["applied_seq"], state["numbers"]
        memory._index.restore(np.load(folder / "keys.npy"), np.load(folder / "labels.npy"))
        for slot in state["slots"]:
            memory._fold.put(_slot(slot))
        memory._phrasings = {int(row): (lesson_id, text) for row, (lesson_id, text) in state["phrasings"].items()}
        for row, (lesson_id, text) in memory._phrasings.items():
            memory._rows.setdefault(lesson_id, {})[text] = row
        return memory


def _slot(saved: dict[str, dict]) -> Slot:
    lesson, ledger = saved["lesson"], saved["ledger"]
    votes = tuple(Vote(**vote) for vote in ledger["votes"])
    return Slot(Lesson(**{**lesson, "paraphrases": tuple(lesson["paraphrases"])}), Ledger(**{**ledger, "votes": votes}))


def _without_overruled(found: list[Candidate]) -> list[Candidate]:
    """Drop wider lessons whose question the viewer's own, narrower lesson answers."""
    narrowest: dict[str, int] = defaultdict(int)
    for candidate in found:
        key = question_key(candidate.lesson.question)
        narrowest[key] = max(narrowest[key], NARROWER.get(candidate.lesson.scope, 0))
    return [c for c in found if NARROWER.get(c.lesson.scope, 0) >= narrowest[question_key(c.lesson.question)]]


def _pairs(asking: int, near: list[Candidate], size: int) -> list[Pair]:
    """Each candidate beside the best candidate of another lesson."""
    numbers = {lesson_id: n for n, lesson_id in enumerate(dict.fromkeys(c.lesson.lesson_id for c in near))}
    pairs = []
    for candidate in near:
        rival = next((other.cosine for other in near if other.lesson.lesson_id != candidate.lesson.lesson_id), 0.0)
        number, margin = numbers[candidate.lesson.lesson_id], candidate.cosine - rival
        pairs.append(Pair(candidate.part, candidate.phrasing, candidate.cosine, margin, asking, number, size))
    return pairs


def _reading(near: list[Candidate], log_odds: NDArray[np.float64]) -> Reading:
    """A lesson counts once, by its best phrasing; where several apply, the narrower scope wins, then the later one."""
    best: dict[str, tuple[float, Lesson]] = {}
    cosines: dict[str, float] = {}  # near comes nearest first
    for candidate, value in zip(near, log_odds.tolist(), strict=True):
        lesson_id = candidate.lesson.lesson_id
        cosines.setdefault(lesson_id, candidate.cosine)
        known = best.get(lesson_id)
        if known is None or value > known[0]:
            best[lesson_id] = (value, candidate.lesson)
    scored = sorted(best.values(), key=lambda item: _precedence(*item), reverse=True)
    applies = [value for value, lesson in scored if value > 0 and lesson.scope in NARROWER]
    if applies:  # the viewer's own lesson applies: lessons of a wider scope step back
        widest = max(NARROWER[lesson.scope] for value, lesson in scored if value > 0 and lesson.scope in NARROWER)
        scored = [(v, lesson) for v, lesson in scored if NARROWER.get(lesson.scope, 0) >= widest]
    weights, null = weights_with_null(np.array([value for value, _ in scored]))
    slots = [
        SlotWeight(
            lesson_id=lesson.lesson_id,
            question=lesson.question,
            answer=lesson.answer,
            weight=weight,
            belief=lesson.belief,
            cosine=cosines[lesson.lesson_id],
            beliefs=dict(lesson.beliefs),
        )
        for (_, lesson), weight in zip(scored, weights.tolist(), strict=True)
    ]
    return Reading(null, tuple(sorted(slots, key=lambda slot: -slot.weight)))


def _precedence(value: float, lesson: Lesson) -> tuple[float, int]:
    return value, lesson.last_seq
