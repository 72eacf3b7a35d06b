"""A demo's figures, computed from its transcript alone: what was asked, what came back, and when.

One line of ``transcript.jsonl`` is one of the records below; fields that a record does not name are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from pipeline.data.lines import read_lines
from pipeline.evaluate.metrics import share
from pipeline.evaluate.protocol import exact_match

AFTER_SWAP = timedelta(seconds=30)

Kind = Literal["question", "paraphrase", "neighbour"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Request(_Record):
    """One question over HTTP and the raw answer."""

    time: datetime
    phase: Literal["before", "adjust", "load", "after"]
    kind: Kind = "question"
    lesson: str | None = None
    question: str = ""
    expected: tuple[str, ...] = ()
    raw: str = ""
    memory: Literal["on", "off"] = "on"
    strategy: str | None = None
    lessons: tuple[str, ...] = ()
    lesson_id: str | None = None  # the slot that the answer has to cite
    model_version: int | None = None
    ms: float = 0.0
    status: int

    @property
    def right(self) -> bool:
        return ok(self.status) and exact_match(self.raw, self.expected)


class Correction(_Record):
    """A correction posted; ``ms_to_answer`` runs until the corrected answer was received."""

    phase: Literal["correction"]
    lesson: str | None = None
    ms_to_answer: float | None = None
    status: int


class Retained(_Record):
    """One retention probe: whether champion and challenger have it right."""

    phase: Literal["retention"]
    probe: str
    champion: bool
    challenger: bool


class Gate(_Record):
    phase: Literal["gate"]
    verdict: dict[str, Any]


class Cycle(_Record):
    time: datetime
    phase: Literal["cycle"]
    event: Literal["start", "swap", "end"]


Record = Request | Correction | Retained | Gate | Cycle


class _Line(RootModel[Annotated[Record, Field(discriminator="phase")]]):
    """A transcript line of whichever phase."""


def read_transcript(path: str | Path) -> list[Record]:
    """Every record of the file; :class:`~pipeline.data.lines.LineError` names the first line that is none."""
    return [line.root for line in read_lines(path, _Line)]


def parse(records: Iterable[Record | Mapping[str, Any]]) -> list[Record]:
    """Records as objects, whether they come as objects or as the dictionaries that the transcript holds."""
    return [r if isinstance(r, Record) else _Line.model_validate(dict(r)).root for r in records]


def measures(transcript: Iterable[Record | Mapping[str, Any]]) -> dict[str, Any]:
    """The demo's figures: shares as {value, low, high, n} (Wilson), counts, milliseconds, and the gate's verdict."""
    records = parse(transcript)
    window = load_during_swap(records)
    return {
        "corrected": _right(records, "adjust", "on", "question"),
        "paraphrase": _right(records, "adjust", "on", "paraphrase"),
        "neighbour": asdict(share(neighbours_unchanged(records))),
        "weights_learned": _right(records, "after", "off", "question"),
        "weights_paraphrase": _right(records, "after", "off", "paraphrase"),
        "retention_kept": asdict(share([r.challenger for r in records if isinstance(r, Retained) and r.champion])),
        "requests_during_swap": len(window),
        "failed_requests": sum(not ok(request.status) for request in window),
        "correction_to_answer_p95_ms": _p95_correction(records),
        "gate": next((r.verdict for r in reversed(records) if isinstance(r, Gate)), None),
    }


def answers(records: Sequence[Record]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The same questions before and after, memory on and off: {phase: {memory: {kind: share right}}}."""
    kinds: tuple[Kind, ...] = ("question", "paraphrase")
    return {
        phase: {memory: {kind: _right(records, phase, memory, kind) for kind in kinds} for memory in ("on", "off")}
        for phase in ("before", "after")
    }


def cited(records: Sequence[Record]) -> dict[str, float]:
    """Share of the questions asked right after their correction whose answer names the corrected lesson."""
    asked = [r for r in requests(records, "adjust", "on", "question") if r.lesson_id is not None]
    return asdict(share([request.lesson_id in request.lessons for request in asked]))


def requests(records: Iterable[Record], phase: str, memory: str, kind: str) -> list[Request]:
    wanted = (phase, memory, kind)
    return [r for r in records if isinstance(r, Request) and (r.phase, r.memory, r.kind) == wanted]


def neighbours_unchanged(records: Sequence[Record]) -> list[bool]:
    """For each neighbour asked after a correction: is the raw answer the one that it got last before?

    A neighbour that was not answered before counts as changed: nothing shows that it is not.
    """
    before: dict[tuple[str | None, str], str] = {}
    unchanged = []
    asked = [*requests(records, "before", "on", "neighbour"), *requests(records, "adjust", "on", "neighbour")]
    for record in sorted(asked, key=lambda request: request.time):
        key = (record.lesson, record.question)
        if record.phase == "adjust":
            unchanged.append(ok(record.status) and before.get(key) == record.raw)
        elif ok(record.status):
            before[key] = record.raw
    return unchanged


def load_during_swap(records: Sequence[Record]) -> list[Request]:
    """Steady load from the cycle's start to 30 s after the swap (to the cycle's end where nothing was swapped)."""
    moments = {event: [r.time for r in records if isinstance(r, Cycle) and r.event == event] for event in _EVENTS}
    if not moments["start"]:
        return []
    ends = [time + AFTER_SWAP for time in moments["swap"]] or moments["end"]
    start, end = min(moments["start"]), max(ends, default=None)
    load = [r for r in records if isinstance(r, Request) and r.phase == "load" and r.time >= start]
    return [request for request in load if end is None or request.time <= end]


def ok(status: int) -> bool:
    """Whether an HTTP status is a success; a request that never got one is recorded with 0."""
    return 200 <= status < 300


def percentile(values: Sequence[float], share_below: float) -> float:
    """Nearest rank: the smallest value that at least ``share_below`` of the values do not exceed."""
    return sorted(values)[max(math.ceil(share_below * len(values)), 1) - 1]


_EVENTS = ("start", "swap", "end")


def _right(records: Sequence[Record], phase: str, memory: str, kind: str) -> dict[str, float]:
    return asdict(share([request.right for request in requests(records, phase, memory, kind)]))


def _p95_correction(records: Sequence[Record]) -> float | None:
    """A correction that failed never got its answer: its time is infinite, and null in the result."""
    times = [_milliseconds(r) for r in records if isinstance(r, Correction)]
    value = percentile(times, 0.95) if times else math.inf
    return value if math.isfinite(value) else None


def _milliseconds(correction: Correction) -> float:
    if not ok(correction.status) or correction.ms_to_answer is None:
        return math.inf
    return correction.ms_to_answer
