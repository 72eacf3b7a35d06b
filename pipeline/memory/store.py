"""The lesson memory: a fold of events, an index over the lessons' phrasings, and the reading of both."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import MemorySettings
from pipeline.feedback.records import Event
from pipeline.memory import snapshot
from pipeline.memory.belief import Fold, Slot
from pipeline.memory.features import Near, Pair, beside_rivals
from pipeline.memory.index import Audience, Found, PartitionedIndex, Vectors
from pipeline.memory.router import Router, weights_with_null
from pipeline.memory.segments import segments
from pipeline.memory.snapshot import Key, audience
from pipeline.memory.types import NARROWER, Explanation, Lesson, Reading, SlotWeight, Viewer, moment, question_key
from pipeline.model.encoder import Encoder

Encode = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Candidate:
    """A lesson that the first stage found: one of its phrasings, and the part of the question that lies nearest."""

    lesson: Lesson
    phrasing: str
    cosine: float
    part: str = ""


class LessonMemory:
    """One writer (``apply``) beside any number of readers, who see the memory before or after a batch of events."""

    def __init__(self, encoder: Encoder, router: Router, settings: MemorySettings | None = None) -> None:
        self.encoder = encoder
        self.router = router
        self.settings = settings or MemorySettings()
        self.applied_seq = 0
        self._fold = Fold(self.settings)
        self._index = PartitionedIndex(encoder.dimension)
        self._keys: list[Key | None] = []  # by row of the index; None: free
        self._free: list[int] = []
        self._rows: dict[str, tuple[int, ...]] = {}  # by lesson
        self._readers: dict[Audience, Audience] = {}  # one object per audience
        self._latest: tuple[int, list[Slot]] = (-1, [])  # applied_seq, and the slots then, last changed first
        self._lock = threading.RLock()
        self._writing = threading.Lock()

    # writing

    def apply(self, events: Iterable[Event], encode: Encode | None = None) -> int:
        """Fold events in; those at or below ``applied_seq`` are known already. Returns the new ``applied_seq``.

        ``encode``: the encoder, or one that remembers what it has encoded before.
        """
        with self._writing:
            fresh = sorted((event for event in events if event.seq > self.applied_seq), key=lambda event: event.seq)
            texts = list(dict.fromkeys(text for event in fresh for text in self._unknown(event)))
            vectors = dict(zip(texts, (encode or self.encoder.encode)(texts), strict=True)) if texts else {}
            with self._lock:
                changed: dict[str, None] = {}
                for event in fresh:
                    changed |= dict.fromkeys(sorted(self._fold.step(event)))
                    self.applied_seq = event.seq
                self._reindex(changed, vectors)
            return self.applied_seq

    def _unknown(self, event: Event) -> list[str]:
        """The wordings that the event may need keys for: encoded before the readers are held up."""
        told = wordings(event)
        if not told:
            return []
        known = self._known(event.body["lesson_id"])
        if event.role == "ask":  # the lesson is copied into the asker's scope
            return [*told, *known]
        return [text for text in told if text not in known]

    def _known(self, lesson_id: str) -> dict[str, int]:
        """The phrasings that have a key, with its row."""
        return {self._key(row).text: row for row in self._rows.get(lesson_id, ())}

    def _key(self, row: int) -> Key:
        key = self._keys[row]
        assert key is not None, f"row {row} of the index is free"
        return key

    def _reindex(self, changed: Iterable[str], vectors: dict[str, Vectors]) -> None:
        """Keys for the phrasings that the changed lessons have now; the audiences are written one after the other."""
        gone: dict[Audience, list[int]] = defaultdict(list)
        new: dict[Audience, dict[int, str]] = defaultdict(dict)
        for lesson_id in changed:
            slot, known = self._fold.slots.get(lesson_id), self._known(lesson_id)
            lesson = slot.lesson if slot else None
            wanted = dict.fromkeys(lesson.phrasings if lesson else ())
            for text, row in known.items():
                if text not in wanted:
                    gone[self._key(row).audience].append(row)
            if lesson is None:
                self._rows.pop(lesson_id, None)
                continue
            seen_by = self._one(audience(lesson))
            for text in wanted:
                if text not in known:
                    known[text] = self._take_row(Key(lesson.lesson_id, text, seen_by))
                    new[seen_by][known[text]] = text
            self._rows[lesson_id] = tuple(known[text] for text in wanted)
        for readers, rows in gone.items():
            self._index.remove(readers, np.array(rows, dtype=np.int64))
            self._release(rows)
        for readers, texts in new.items():
            keys = np.stack([self._vector(text, vectors) for text in texts.values()])
            self._index.add(readers, np.array(list(texts), dtype=np.int64), keys)

    def _vector(self, text: str, vectors: dict[str, Vectors]) -> Vectors:
        """A phrasing's key: just encoded, or, where the fold kept a wording that no event of this batch names, now."""
        vector: Vectors = vectors[text] if text in vectors else self.encoder.encode([text])[0]
        return vector

    def _one(self, seen_by: Audience) -> Audience:
        return self._readers.setdefault(seen_by, seen_by)

    def _take_row(self, key: Key) -> int:
        if not self._free:
            self._keys.append(key)
            return len(self._keys) - 1
        row = self._free.pop()
        self._keys[row] = key
        return row

    def _release(self, rows: list[int]) -> None:
        for row in rows:
            self._keys[row] = None
        self._free.extend(rows)

    # reading

    def read(self, questions: Sequence[str], viewers: Sequence[Viewer], now: datetime | None = None) -> list[Reading]:
        """One reading per question: softmax over the viewer's lessons and the null slot.

        Lessons that have expired at ``now`` (default: this moment) are not read.
        """
        if len(questions) != len(viewers):
            raise ValueError(f"{len(questions)} questions but {len(viewers)} viewers: pass one viewer per question")
        if not self._rows or not questions:
            return [Reading() for _ in questions]
        parts = [(asking, part) for asking, question in enumerate(questions) for part in segments(question)]
        vectors, time = self.encoder.encode([part for _, part in parts]), moment(now or datetime.now(UTC))
        with self._lock:
            found, size = self._nearest(parts, vectors, viewers, time), len(self)
        pairs = [pair for asking, near in enumerate(found) for pair in _pairs(asking, near, size)]
        log_odds = self.router.score(pairs) if pairs else np.zeros(0)
        ends = np.cumsum([len(near) for near in found])[:-1]
        return [_reading(near, part) for near, part in zip(found, np.split(log_odds, ends), strict=True)]

    def _nearest(
        self, parts: list[tuple[int, str]], vectors: Vectors, viewers: Sequence[Viewer], now: str
    ) -> list[list[Candidate]]:
        """For each viewer the phrasings nearest to any part of the question among lessons that may be read.

        ``parts`` are (viewer's number, text), one for each row of ``vectors``.
        """
        asking: dict[Audience, list[int]] = defaultdict(list)  # one search per audience, for everybody in it
        for row, (number, _) in enumerate(parts):
            for readers in _audiences(viewers[number]):
                asking[readers].append(row)
        found: list[list[Candidate]] = [[] for _ in viewers]
        for readers, rows in asking.items():
            for row, near in zip(rows, self._among(readers, vectors[rows], now), strict=True):
                number, part = parts[row]
                found[number] += [replace(candidate, part=part) for candidate in near]
        return [_without_overruled(_nearest_first(near)[: self.settings.candidates]) for near in found]

    def _among(self, readers: Audience, queries: Vectors, now: str) -> list[list[Candidate]]:
        """The nearest readable phrasings: where lessons that may not be read stand in the way, it looks further."""
        wanted, count = self.settings.candidates, self.settings.candidates
        near: list[list[Candidate]] = [[] for _ in queries]
        rest = list(range(len(queries)))
        while rest:
            for number, hits in zip(rest, self._index.search(readers, queries[rest], count), strict=True):
                near[number] = self._readable(hits, now)
                if len(near[number]) >= wanted or len(hits[0]) < count:
                    rest = [other for other in rest if other != number]
            count *= 4
        return near

    def _readable(self, hits: Found, now: str) -> list[Candidate]:
        found = []
        for row, cosine in zip(hits[0].tolist(), hits[1].tolist(), strict=True):
            key = self._key(row)
            lesson = self._fold.slots[key.lesson_id].lesson
            if lesson.believed and not lesson.expired(now):
                found.append(Candidate(lesson, key.text, cosine))
        return found

    # listing

    def lessons(self, viewer: Viewer, search: str = "", offset: int = 0, limit: int = 50) -> list[Lesson]:
        """The viewer's lessons, last changed first, whose question, answer or phrasing contains ``search``."""
        wanted = search.casefold()
        hits = (
            slot.lesson
            for slot in self._by_change()
            if slot.header.visible_to(viewer) and (not wanted or wanted in _text(slot.lesson))
        )
        return list(islice(hits, offset, offset + limit))

    def _by_change(self) -> list[Slot]:
        with self._lock:
            if self._latest[0] != self.applied_seq:
                self._latest = self.applied_seq, list(reversed(self._fold.slots.values()))
            return self._latest[1]

    def get(self, lesson_id: str) -> Lesson | None:
        with self._lock:
            slot = self._fold.slots.get(lesson_id)
            return slot.lesson if slot else None

    def explain(self, lesson_id: str) -> Explanation | None:
        """Why the slot believes what it believes: the evidence that counts, in order."""
        with self._lock:
            return self._fold.explain(lesson_id)

    def trust_of(self, tenant: str, source: str) -> float:
        """What became of the source's earlier votes: 1 for the unknown, below it for the contradicted."""
        with self._lock:
            return self._fold.sources.multiplier(tenant, source)

    def __len__(self) -> int:
        return len(self._fold.slots)

    # snapshots: a cache of the log, keyed by seq

    def save(self, folder: Path) -> None:
        """The whole memory; readers are not held up, writers wait."""
        with self._writing:
            self._index.wait()
            state = snapshot.State(self.encoder.name, self.applied_seq, self._fold, self._keys, self._free)
            snapshot.save(folder, state, self._index)

    @classmethod
    def load(
        cls, folder: Path, encoder: Encoder, router: Router, settings: MemorySettings | None = None
    ) -> LessonMemory:
        """The memory as it was saved; ``apply`` continues after its ``applied_seq``, to the same bits.

        Raises :class:`~pipeline.memory.snapshot.SnapshotError` where the snapshot does not fit.
        """
        memory = cls(encoder, router, settings)
        state = snapshot.load(folder, encoder.name, memory.settings, memory._index)
        memory.applied_seq, memory._fold = state.applied_seq, state.fold
        memory._keys, memory._free = state.keys, state.free
        rows: dict[str, list[int]] = defaultdict(list)
        for row, key in enumerate(state.keys):
            if key is not None:
                rows[key.lesson_id].append(row)
        memory._rows = {lesson_id: tuple(held) for lesson_id, held in rows.items()}
        return memory


def wordings(event: Event) -> list[str]:
    """The question and the phrasings that a lesson event tells."""
    if event.kind != "lesson" or event.body["op"] != "correct":
        return []
    return [event.body["question"], *(event.body.get("paraphrases") or ())]


def _audiences(viewer: Viewer) -> list[Audience]:
    own = (("user", viewer.user), ("session", viewer.session))
    return [(viewer.tenant, "", ""), *((viewer.tenant, scope, name) for scope, name in own if name)]


def _text(lesson: Lesson) -> str:
    return "\n".join((*lesson.phrasings, lesson.answer)).casefold()


def _nearest_first(near: list[Candidate]) -> list[Candidate]:
    """Each phrasing once, beside the part of the question that it is nearest to."""
    ranked = sorted(near, key=lambda candidate: (-candidate.cosine, candidate.lesson.lesson_id, candidate.phrasing))
    seen: dict[tuple[str, str], Candidate] = {}
    for candidate in ranked:
        seen.setdefault((candidate.lesson.lesson_id, candidate.phrasing), candidate)
    return list(seen.values())


def _without_overruled(found: list[Candidate]) -> list[Candidate]:
    """Drop wider lessons whose question the viewer's own, narrower lesson answers."""
    narrowest: dict[str, int] = defaultdict(int)
    for candidate in found:
        key = question_key(candidate.lesson.question)
        narrowest[key] = max(narrowest[key], NARROWER.get(candidate.lesson.scope, 0))
    return [c for c in found if NARROWER.get(c.lesson.scope, 0) >= narrowest[question_key(c.lesson.question)]]


def _pairs(asking: int, near: list[Candidate], size: int) -> list[Pair]:
    numbers = {lesson_id: n for n, lesson_id in enumerate(dict.fromkeys(c.lesson.lesson_id for c in near))}
    found = [Near(c.part, c.phrasing, c.cosine, numbers[c.lesson.lesson_id]) for c in near]
    return beside_rivals(found, size, asking)


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
            previous=lesson.previous,
        )
        for (_, lesson), weight in zip(scored, weights.tolist(), strict=True)
    ]
    return Reading(null, tuple(sorted(slots, key=lambda slot: -slot.weight)))


def _precedence(value: float, lesson: Lesson) -> tuple[float, int]:
    return value, lesson.last_seq
