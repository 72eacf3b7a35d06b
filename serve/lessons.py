"""Feedback, lessons and lineage. A write is acknowledged after its commit and after this replica has applied it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, BaseModel, Field

from pipeline.data.lines import LessonLine
from pipeline.feedback import intake
from pipeline.feedback import lineage as traced
from pipeline.feedback.intake import Receipt
from pipeline.feedback.keys import Key
from pipeline.feedback.records import Event
from pipeline.memory.rewording import Overlap, overlap
from pipeline.memory.types import Explanation, Lesson, Viewer, moment
from serve.auth import Asker, Teacher
from serve.errors import ApiError
from serve.schemas import (
    FeedbackLineage,
    FeedbackReply,
    FeedbackRequest,
    Identifier,
    LessonChange,
    LessonPage,
    LessonReply,
    Lineage,
    LineageCycle,
    LineageEvent,
    LineageLesson,
    LineageVersion,
    Name,
    OverlapReply,
    RequestBody,
    TouchedAnswer,
)
from serve.service import Service

routes = APIRouter()
APPLY_TIMEOUT_S = 10.0
EVERY = 2**31


class NewLesson(LessonLine, RequestBody):
    """A lesson line and an optional idempotency key; ``session`` is needed where ``scope`` is ``session``."""

    feedback_id: Identifier | None = None
    session: Name = ""


@routes.post("/v1/feedback")
async def feedback(body: FeedbackRequest, request: Request, key: Asker) -> FeedbackReply:
    service: Service = request.app.state.service
    said = intake.Said(
        response_id=body.response_id,
        kind=body.kind,
        key=key,
        value=body.value,
        tags=body.tags,
        feedback_id=body.feedback_id,
        source=body.source or None,
        session=body.session,
    )
    receipt = await _written(service.recorder.hear(said))
    service.meters.feedback.inc(tags={"kind": body.kind})
    if body.kind == "rating" and not receipt.duplicate:
        service.meters.rated(receipt.model_version or 0, float(body.value))
    return await _applied(service, receipt)


@routes.post("/v1/lessons")
async def teach(body: NewLesson, request: Request, key: Teacher) -> FeedbackReply:
    """The reply's ``overlap`` names the lesson that answered the question so far in other words, if one did."""
    service: Service = request.app.state.service
    line = LessonLine.model_validate(body.model_dump(exclude={"feedback_id", "session"}))
    found = await asyncio.get_running_loop().run_in_executor(
        service.engine.memory_thread, overlap, service.memory, line, key.tenant
    )
    change = partial(
        intake.record_lesson,
        service.log,
        line,
        key=key,
        feedback_id=body.feedback_id,
        session=body.session,
        replaces=found.lesson if found and found.replaced else None,
    )
    reply = await _changed(service, change)
    return reply.model_copy(update={"overlap": _overlap(found)}) if found else reply


@routes.patch("/v1/lessons/{lesson_id}")
async def amend(
    lesson_id: Identifier, body: LessonChange, request: Request, key: Asker, user: Name = ""
) -> FeedbackReply:
    """Another answer, more phrasings, or both. An asker amends only the asker's own lessons."""
    service: Service = request.app.state.service
    change = partial(
        intake.amend_lesson,
        service.log,
        lesson_id,
        answer=body.answer,
        paraphrases=body.paraphrases,
        key=key,
        feedback_id=body.feedback_id,
        source=user or None,
        session=body.session,
        curator=service.curator,
    )
    return await _changed(service, change)


@routes.delete("/v1/lessons/{lesson_id}")
async def retract(
    lesson_id: Identifier, request: Request, key: Asker, user: Name = "", session: Name = ""
) -> FeedbackReply:
    """An asker takes back only the asker's own lessons; for the others it needs ``teach``."""
    service: Service = request.app.state.service
    change = partial(
        intake.retract_lesson,
        service.log,
        lesson_id,
        key=key,
        source=user or None,
        session=session,
        lesson=service.memory.get(lesson_id),
    )
    return await _changed(service, change)


@routes.get("/v1/lessons/{lesson_id}")
async def lesson(
    lesson_id: Identifier, request: Request, key: Asker, user: Name = "", session: Name = ""
) -> LessonReply:
    found = request.app.state.service.memory.get(lesson_id)
    if found is None or not found.visible_to(Viewer(key.tenant, user or key.name, session)):
        raise ApiError(404, "unknown_lesson", f"no lesson has the id {lesson_id!r:.80}", "lesson_id")
    return _lesson(found)


@routes.get("/v1/lessons")
async def lessons(
    request: Request,
    key: Asker,
    search: Annotated[str, Query(max_length=1_000)] = "",
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 50,
    user: Name = "",
    session: Name = "",
) -> LessonPage:
    """The lessons that the caller's answers may rest on, the latest first; ``search`` is a part of their text."""
    service: Service = request.app.state.service
    viewer = Viewer(key.tenant, user or key.name, session)
    found = await asyncio.to_thread(service.memory.lessons, viewer, search, 0, EVERY)
    page = found[offset : offset + limit]
    return LessonPage(
        data=[_lesson(lesson) for lesson in page],
        total=len(found),
        has_more=offset + len(page) < len(found),
        lesson_seq=service.engine.followed.value,
    )


@routes.get("/v1/lineage/{name}")
async def lineage(name: Identifier, request: Request, key: Asker) -> Lineage | FeedbackLineage:
    """What stands behind an answer (its response id), or what a feedback has touched (its feedback id)."""
    service: Service = request.app.state.service
    return await asyncio.to_thread(_lineage, service, name, key.tenant)


def _lineage(service: Service, name: str, tenant: str) -> Lineage | FeedbackLineage:
    try:
        if service.log.response(name) is not None:
            return _behind(service, traced.of_answer(service.home, service.log, name, tenant))
        return _touched(traced.of_feedback(service.home, service.log, name, tenant))
    except (intake.UnknownResponse, traced.UnknownFeedback):
        message = f"neither an answer nor a feedback has the id {name!r:.80}"
        raise ApiError(404, "unknown_response", message, "name") from None


def _behind(service: Service, found: traced.AnswerLineage) -> Lineage:
    lessons = [(lesson_id, service.memory.get(lesson_id), events) for lesson_id, events in found.lessons.items()]
    return Lineage(
        response_id=found.answer.response_id or "",
        answer=_event(found.answer),
        model_version=found.answer.body["model_version"],
        versions=[LineageVersion(**vars(version)) for version in found.versions],
        lessons=[
            LineageLesson(
                lesson_id=lesson_id,
                question=lesson.question if lesson else None,
                answer=lesson.answer if lesson else None,
                events=[_event(event) for event in events],
            )
            for lesson_id, lesson, events in lessons
        ],
        cycles=[_cycle(use) for use in found.cycles],
        feedback=[_event(event) for event in found.feedback if event.kind == "feedback"],
    )


def _touched(found: traced.FeedbackLineage) -> FeedbackLineage:
    return FeedbackLineage(
        feedback_id=found.events[0].feedback_id or "",
        events=[_event(event) for event in found.events],
        answered=found.answered.response_id if found.answered else None,
        lessons=list(found.lessons),
        cycles=[_cycle(use) for use in found.cycles],
        versions=list(found.versions),
        answers=[
            TouchedAnswer(
                response_id=event.response_id or "", time=event.time, model_version=event.body.get("model_version")
            )
            for event in found.answers
        ],
    )


def _cycle(use: traced.CycleUse) -> LineageCycle:
    return LineageCycle(**{**vars(use), "lessons": list(use.lessons)})


async def _changed(service: Service, change: Callable[[], Receipt]) -> FeedbackReply:
    return await _applied(service, await _written(service.recorder.write(change)))


async def _written(writing: Awaitable[Receipt]) -> Receipt:
    try:
        return await writing
    except ValueError as error:  # the log's own checks name field and value
        raise ApiError(422, "invalid_value", str(error)) from None


async def _applied(service: Service, receipt: Receipt) -> FeedbackReply:
    if receipt.lesson_seq is not None:
        await service.lesson_follower.reach(receipt.lesson_seq, APPLY_TIMEOUT_S)
    return FeedbackReply(
        feedback_id=receipt.feedback_id,
        seq=receipt.seq,
        lesson_id=receipt.lesson_id,
        lesson_seq=receipt.lesson_seq,
        duplicate=receipt.duplicate,
        quarantined=list(receipt.quarantined),
    )


def _overlap(found: Overlap) -> OverlapReply:
    known = found.lesson
    return OverlapReply(
        lesson_id=known.lesson_id, question=known.question, answer=known.answer, replaced=found.replaced
    )


def _lesson(lesson: Lesson) -> LessonReply:
    return LessonReply(
        lesson_id=lesson.lesson_id,
        question=lesson.question,
        answer=lesson.answer,
        beliefs=lesson.beliefs,
        belief=lesson.belief,
        trust=lesson.trust,
        previous=lesson.previous,
        paraphrases=list(lesson.paraphrases),
        scope=lesson.scope,
        source=lesson.source,
        first_seq=lesson.first_seq,
        last_seq=lesson.last_seq,
        date=lesson.date,
        expires=lesson.expires,
        changed=lesson.last_time,
    )


def _event(event: Event) -> LineageEvent:
    return LineageEvent(
        seq=event.seq,
        kind=event.kind,
        time=event.time,
        source=event.source,
        feedback_id=event.feedback_id,
        response_id=event.response_id,
        body=event.body,
    )


# one lesson by its id: why it is believed, when it ends, and evidence for it


class EvidenceReply(BaseModel):
    """One step of the beliefs; the first one of a taught lesson is its birth with belief 1."""

    seq: int
    source: str
    answer: str
    value: float = Field(description="1: for the answer; below 0: against it")
    trust: float
    alpha: float
    beliefs: dict[str, float]


class ExplanationReply(LessonReply):
    evidence: list[EvidenceReply]


class Who(RequestBody):
    """``user`` and ``session``: whose lessons the caller may touch beside those of the key."""

    user: Name = ""
    session: Name = ""
    feedback_id: Identifier | None = None


def _end(text: str) -> str:
    return text if text == intake.NOW else moment(text)


class End(Who):
    """``expires``: a date or a time, "now", or null for no end."""

    expires: Annotated[str, AfterValidator(_end)] | None = intake.NOW


class Rating(Who):
    value: float = Field(1.0, ge=-1, le=1, description="1: the lesson's answer is right; -1: it is wrong")


@routes.get("/v1/lessons/{lesson_id}/evidence")
async def explain(
    lesson_id: Identifier, request: Request, key: Asker, user: Name = "", session: Name = ""
) -> ExplanationReply:
    """The evidence that counts, in order, with the step size and trust of each and the beliefs that it left."""
    found = await _explained(request, key, lesson_id, user, session)
    evidence = [EvidenceReply.model_validate(step, from_attributes=True) for step in found.evidence]
    return ExplanationReply(**_lesson(found.lesson).model_dump(), evidence=evidence)


@routes.post("/v1/lessons/{lesson_id}/expiry")
async def expire(lesson_id: Identifier, body: End, request: Request, key: Asker) -> FeedbackReply:
    """An asker ends only the asker's own lessons; for the others it needs ``teach``."""
    service: Service = request.app.state.service
    found = await _explained(request, key, lesson_id, body.user, body.session)
    change = partial(intake.expire_lesson, service.log, lesson_id, body.expires)
    who = {"source": body.user or None, "session": body.session, "feedback_id": body.feedback_id}
    return await _changed(service, partial(change, key=key, lesson=found.lesson, **who))


@routes.post("/v1/lessons/{lesson_id}/rating")
async def rate(lesson_id: Identifier, body: Rating, request: Request, key: Asker) -> FeedbackReply:
    """Evidence for or against the answer that the lesson gives now; one vote per source."""
    service: Service = request.app.state.service
    found = await _explained(request, key, lesson_id, body.user, body.session)
    change = partial(
        intake.rate_lesson, service.log, lesson_id, found.lesson.answer, body.value, curator=service.curator
    )
    who = {"source": body.user or None, "session": body.session, "feedback_id": body.feedback_id}
    return await _changed(service, partial(change, key=key, lesson=found.lesson, **who))


async def _explained(request: Request, key: Key, lesson_id: str, user: str, session: str) -> Explanation:
    found = await asyncio.to_thread(request.app.state.service.memory.explain, lesson_id)
    if found is None or not found.lesson.visible_to(Viewer(key.tenant, user or key.name, session)):
        raise ApiError(404, "unknown_lesson", f"no lesson has the id {lesson_id!r:.80}", "lesson_id")
    return found
