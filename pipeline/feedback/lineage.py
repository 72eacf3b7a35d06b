"""Lineage both ways: from an answer to the feedback behind it, and from a feedback to everything that it touched."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.feedback.curation import review_id
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import UnknownResponse
from pipeline.feedback.manifest import manifests
from pipeline.feedback.records import Event
from pipeline.home import Home
from pipeline.memory.belief import SHARED, evidence_for, slot_id
from pipeline.model.bundle import HEADER
from pipeline.tracking import promotions
from pipeline.tracking.registry import Registry


class UnknownFeedback(LookupError):  # noqa: N818 - reads as what happened
    """No feedback with this id is in this tenant's log; it may have been erased."""


@dataclass(frozen=True)
class Version:
    """One model version, as its bundle describes itself."""

    version: int
    cycle: int
    parent: int | None
    trained_through_seq: int
    code: str  # revision
    base_digest: str
    tensors_digest: str
    recipe: dict[str, Any]


@dataclass(frozen=True)
class CycleUse:
    """A cycle and the lessons that it trained, of those that are asked about."""

    cycle: int
    version: int | None  # None: it made none, or was refused long ago
    from_seq: int
    to_seq: int
    lessons: tuple[str, ...]


@dataclass(frozen=True)
class AnswerLineage:
    """What stands behind one answer."""

    answer: Event
    versions: tuple[Version, ...]  # the one that answered, then its ancestors
    lessons: dict[str, tuple[Event, ...]]  # cited lesson -> what had made it by then, and the feedback behind that
    cycles: tuple[CycleUse, ...]  # of these versions
    feedback: tuple[Event, ...]  # on this answer


@dataclass(frozen=True)
class FeedbackLineage:
    """What one feedback has touched."""

    events: tuple[Event, ...]
    answered: Event | None  # the answer that it was about
    lessons: tuple[str, ...]
    cycles: tuple[CycleUse, ...]  # that trained one of these lessons after the feedback
    versions: tuple[int, ...]  # made by these cycles, or descended from one that was
    answers: tuple[Event, ...]  # that cite one of these lessons, given later


def of_answer(home: Home, log: EventLog, response_id: str, tenant: str = "default") -> AnswerLineage:
    """Raises :class:`~pipeline.feedback.intake.UnknownResponse`."""
    said = log.by_response(response_id)
    answer = next((event for event in said if event.kind == "answer" and event.tenant == tenant), None)
    if answer is None:
        raise UnknownResponse(f"no answer with response_id {response_id!r} was given here, or it is kept no longer")
    versions = tuple(_ancestry(_versions(home, log), answer.body.get("model_version", 0)))
    made = {version.cycle for version in versions}
    cited = [lesson["lesson_id"] for lesson in answer.body.get("lessons") or ()]
    return AnswerLineage(
        answer=answer,
        versions=versions,
        lessons={lesson_id: _makers(log, answer, lesson_id) for lesson_id in cited},
        cycles=tuple(use for use in _cycles(home, log) if use.cycle in made),
        feedback=tuple(event for event in said if event.seq != answer.seq),
    )


def of_feedback(home: Home, log: EventLog, feedback_id: str, tenant: str = "default") -> FeedbackLineage:
    """Raises :class:`UnknownFeedback`."""
    events = [*log.by_feedback(tenant, feedback_id), *log.by_feedback(tenant, review_id(feedback_id))]
    if not events:
        raise UnknownFeedback(f"no feedback with id {feedback_id!r} is here; it may have been erased")
    first, lessons = events[0], tuple(dict.fromkeys(i for event in events for i in _lessons(log, event)))
    cycles = tuple(use for use in _cycles(home, log, lessons) if use.lessons and use.to_seq >= first.seq)
    made, versions = {use.cycle for use in cycles}, _versions(home, log)
    return FeedbackLineage(
        events=tuple(events),
        answered=log.response(first.response_id) if first.response_id else None,
        lessons=lessons,
        cycles=cycles,
        versions=tuple(v for v in versions if any(step.cycle in made for step in _ancestry(versions, v))),
        answers=_in_order(e for i in lessons for e in log.citing(tenant, i) if e.seq > first.seq),
    )


def _lessons(log: EventLog, event: Event) -> Iterable[str]:
    """The lesson that a lesson event names, everybody's that it is evidence for, and the asker's own that it makes."""
    if event.kind == "lesson":
        yield event.body["lesson_id"]
        yield from _own_copy(log, event)
    if shared := evidence_for(event):
        yield next((i for i in shared if log.by_lesson(event.tenant, i)), shared[-1])


def _own_copy(log: EventLog, event: Event) -> Iterable[str]:
    """Who corrects a lesson of everybody's without being a teacher has a lesson of their own from then on."""
    if event.role != "ask" or event.body["op"] != "correct":
        return
    named = event.body["lesson_id"]
    taught = (e for e in log.by_lesson(event.tenant, named) if e.scope in SHARED and e.body["op"] == "correct")
    shared = next(iter((*log.citing(event.tenant, named, "lesson"), *taught)), None)
    if shared is not None:
        yield slot_id(event.tenant, event.scope, event.scope_id, shared.body["question"])


def _in_order(events: Iterable[Event]) -> tuple[Event, ...]:
    found = {event.seq: event for event in events}
    return tuple(found[seq] for seq in sorted(found))


def _makers(log: EventLog, answer: Event, lesson_id: str) -> tuple[Event, ...]:
    about = [*log.by_lesson(answer.tenant, lesson_id), *log.citing(answer.tenant, lesson_id, "lesson")]
    if not about:  # the asker's own, made by a correction that names everybody's
        said = log.said_lately(answer.tenant, answer.source, since="")
        about = [event for event in said if lesson_id in _own_copy(log, event)]
    made = [event for event in about if event.seq < answer.seq]
    causes = dict.fromkeys(event.feedback_id for event in made if event.feedback_id)
    return _in_order([*made, *(event for cause in causes for event in log.by_feedback(answer.tenant, cause))])


def drawing(lineage: AnswerLineage | FeedbackLineage) -> str:
    """The lineage as a Mermaid flowchart, feedback on the left and answers on the right."""
    edges: dict[tuple[str, str], None] = {}
    if isinstance(lineage, AnswerLineage):
        answer = f"answer {lineage.answer.response_id}"
        for lesson_id, events in lineage.lessons.items():
            edges[f"lesson {lesson_id}", answer] = None
            edges |= dict.fromkeys((f"feedback {event.feedback_id}", f"lesson {lesson_id}") for event in events)
        for version, older in zip(lineage.versions, (*lineage.versions[1:], None), strict=True):
            newer = answer if version is lineage.versions[0] else None
            if newer is not None:
                edges[f"version {version.version}", newer] = None
            if older is not None:
                edges[f"version {older.version}", f"version {version.version}"] = None
    else:
        feedback = f"feedback {lineage.events[0].feedback_id}"
        if lineage.answered is not None:
            edges[f"answer {lineage.answered.response_id}", feedback] = None
        for lesson_id in lineage.lessons:
            edges[feedback, f"lesson {lesson_id}"] = None
        for event in lineage.answers:
            for cited in event.body["lessons"]:
                if cited["lesson_id"] in lineage.lessons:
                    edges[f"lesson {cited['lesson_id']}", f"answer {event.response_id}"] = None
    edges |= {(f"lesson {i}", f"cycle {use.cycle}"): None for use in lineage.cycles for i in use.lessons}
    edges |= {(f"cycle {use.cycle}", f"version {use.version}"): None for use in lineage.cycles if use.version}
    return "flowchart LR\n" + "".join(f"  {_node(start)} --> {_node(end)}\n" for start, end in edges)


def _node(name: str) -> str:
    return f'{name.replace(" ", "_").replace("-", "_")}["{name}"]'


def _cycles(home: Home, log: EventLog, lessons: Iterable[str] | None = None) -> list[CycleUse]:
    """Every cycle with the lessons that it trained, or those of them that are in ``lessons``."""
    versions = promotions.versions_by_cycle(log.engine)
    wanted = None if lessons is None else set(lessons)
    return [
        CycleUse(
            m.cycle, versions.get(m.cycle), m.from_seq, m.to_seq,
            tuple(i for i in m.trained if wanted is None or i in wanted),
        )
        for m in manifests(home.cycles)
    ]  # fmt: skip


def _versions(home: Home, log: EventLog) -> dict[int, Version]:
    """The versions whose files are there; without MLflow, whose import takes a replica seconds."""
    registry = Registry(home, log.engine)
    found = {}
    for version in promotions.versions(log.engine):
        if (folder := registry.folder_here(version)) is not None:
            header = {"code": "unknown", **json.loads((folder / HEADER).read_text(encoding="utf-8"))}
            told = {name: header[name] for name in Version.__dataclass_fields__ if name in header}
            found[version] = Version(version=version, **told)
    return found


def _ancestry(versions: dict[int, Version], version: int | None) -> Iterable[Version]:
    while version is not None and version in versions:
        yield versions[version]
        version = versions[version].parent
