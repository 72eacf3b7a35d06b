"""What one cycle learned from: a range of the event log, never "what is there"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.data.phrasing import phrasings
from pipeline.feedback.curation import decisions
from pipeline.feedback.events import EventLog
from pipeline.feedback.records import HELD, Event
from pipeline.feedback.sealer import read_events, sealed_seq, table_version
from pipeline.feedback.served import served as sample_served
from pipeline.files import write_whole
from pipeline.memory.belief import fold
from pipeline.memory.types import Lesson

__all__ = [
    "MANIFEST", "VERDICT", "Dropped", "Manifest", "NotSealed", "build_manifest", "cycle_history", "cycle_lessons",
    "manifests", "read_events",
]  # fmt: skip

MANIFEST, VERDICT = "manifest.json", "verdict.json"  # in a cycle's folder; without a verdict it was interrupted
ACCEPTED_BELIEF = 0.5

Choose = Callable[[Sequence[str]], tuple[str, ...]]  # some of these lesson ids


def _none(_earlier: Sequence[str]) -> tuple[str, ...]:
    return ()


class NotSealed(RuntimeError):  # noqa: N818 - reads as what happened
    """The range reaches beyond what the sealer has written; drain first."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dropped(_Record):
    """A lesson, or one answer of it, that this cycle does not train, and why."""

    lesson_id: str
    reason: str


class Manifest(_Record):
    """Everything that decides what a cycle trains: the same range of the same table version gives the same manifest."""

    cycle: int
    from_seq: int  # exclusive
    to_seq: int
    table_version: int
    rows: int
    lessons: tuple[str, ...]
    dropped: tuple[Dropped, ...]
    seed: int
    withheld: dict[str, tuple[str, ...]]
    served: tuple[int, ...] = ()  # rows of answers whose questions are replayed
    replayed: tuple[str, ...] = ()  # lessons of earlier cycles that are trained again

    @property
    def trained(self) -> tuple[str, ...]:
        """Every lesson that went into the weights: the range's and the replayed ones."""
        return (*self.lessons, *self.replayed)

    def save(self, path: str | Path) -> None:
        write_whole(Path(path), self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))


def build_manifest(
    table_path: str | Path,
    log: EventLog,
    *,
    cycle: int,
    from_seq: int,
    to_seq: int,
    seed: int = 0,
    version: int | None = None,
    served: int = 0,
    replayed: Choose = _none,
) -> Manifest:
    """The manifest of the lessons that changed in ``from_seq`` < seq <= ``to_seq``.

    Belief is a fold of all events up to ``to_seq``; only the lessons that the range touched are listed. ``served``: at
    most how many questions that people asked up to there are replayed; ``replayed`` chooses among the lessons that
    stood before the range and still do.
    Raises :class:`NotSealed` when the table does not reach ``to_seq``.
    """
    if sealed_seq(table_path) < to_seq:
        raise NotSealed(f"{table_path} is sealed through seq {sealed_seq(table_path)}, the cycle needs {to_seq}")
    pinned = table_version(table_path) if version is None else version
    history = read_events(table_path, log, 0, to_seq, version=pinned)
    believed = fold(history)
    lessons, dropped = _accepted(history, believed, from_seq)
    earlier = [i for i, lesson in believed.items() if lesson.last_seq <= from_seq and _refusal(lesson) is None]
    return Manifest(
        cycle=cycle,
        from_seq=from_seq,
        to_seq=to_seq,
        table_version=pinned,
        rows=sum(event.seq > from_seq for event in history),
        lessons=tuple(lessons),
        dropped=tuple(dropped),
        seed=seed,
        withheld={lesson_id: tuple(phrasings(lesson)[1]) for lesson_id, lesson in lessons.items()},
        served=sample_served(history, believed.values(), count=served, seed=seed),
        replayed=replayed(sorted(earlier)) if lessons else (),
    )


def manifests(cycles: Path) -> list[Manifest]:
    """Of every cycle in this folder, oldest first."""
    return [Manifest.load(file) for file in sorted(cycles.glob(f"*/{MANIFEST}"))]


def cycle_history(table_path: str | Path, log: EventLog, manifest: Manifest) -> list[Event]:
    """Everything up to the manifest's ``to_seq``, from the table version that it names."""
    return read_events(table_path, log, 0, manifest.to_seq, version=manifest.table_version)


def cycle_lessons(history: Iterable[Event], manifest: Manifest) -> dict[str, Lesson]:
    """The manifest's lessons as they stood at its ``to_seq``."""
    lessons = fold(history)
    return {lesson_id: lessons[lesson_id] for lesson_id in manifest.lessons}


def _accepted(
    history: Sequence[Event], lessons: dict[str, Lesson], from_seq: int
) -> tuple[dict[str, Lesson], list[Dropped]]:
    """The lessons that events after ``from_seq`` changed: those to train, and what is left out with the reason.

    An asker's correction changes two lessons, the asker's own and everybody's, of which its event names only one:
    so the fold says what changed, and the events say only what is gone.
    """
    named = _corrections(history, from_seq)
    dropped = [Dropped(lesson_id=gone, reason="retracted") for gone in named if gone not in lessons]
    dropped += _held_back(history, from_seq)
    accepted: dict[str, Lesson] = {}
    for lesson_id, lesson in lessons.items():
        if lesson.last_seq <= from_seq:
            continue
        if reason := _refusal(lesson):
            dropped.append(Dropped(lesson_id=lesson_id, reason=reason))
            continue
        accepted[lesson_id] = lesson
        dropped.extend(_superseded(lesson, named.get(lesson_id, ())))
    return accepted, dropped


def _corrections(history: Iterable[Event], from_seq: int) -> dict[str, list[str]]:
    """The answers given after ``from_seq``, by the lesson that the events name; a retraction names it too."""
    named: dict[str, list[str]] = {}
    for event in history:
        if event.kind == "lesson" and event.seq > from_seq and HELD not in event.body:
            answers = named.setdefault(event.body["lesson_id"], [])
            answers.extend([event.body["answer"]] if event.body["op"] == "correct" else ())
    return named


def _held_back(history: Sequence[Event], from_seq: int) -> Iterable[Dropped]:
    """What was said or decided after ``from_seq`` and counts for its source alone."""
    decided = decisions(history)
    rejected = {e.body["feedback_id"] for e in history if e.kind == "review" and e.seq > from_seq}
    for event in history:
        if event.kind != "lesson" or HELD not in event.body:
            continue
        decision = decided.get((event.tenant, event.feedback_id or ""))
        if decision != "accept" and (event.seq > from_seq or event.feedback_id in rejected):
            why = "rejected in review" if decision else "quarantined"
            yield Dropped(lesson_id=event.body["lesson_id"], reason=f"{why}: {'; '.join(event.body[HELD])}")


def _refusal(lesson: Lesson) -> str | None:
    if lesson.scope != "global":
        return f"scope {lesson.scope}, not global"
    belief = lesson.beliefs.get(lesson.answer, 0.0)
    return f"belief {belief:.2f} below {ACCEPTED_BELIEF}" if belief < ACCEPTED_BELIEF else None


def _superseded(lesson: Lesson, answers: Iterable[str]) -> list[Dropped]:
    """The answers of the range that a later or better believed one replaced."""
    replaced = [answer for answer in dict.fromkeys(answers) if answer != lesson.answer]
    reason = "answer {!r} superseded by {!r}"
    return [Dropped(lesson_id=lesson.lesson_id, reason=reason.format(answer, lesson.answer)) for answer in replaced]
