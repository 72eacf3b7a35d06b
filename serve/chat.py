"""``POST /v1/chat/completions``: OpenAI's form, with the memory's part in the extra field ``memory``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from pipeline.evaluate.protocol import Message, prompt_messages
from pipeline.feedback.intake import answer_event
from pipeline.feedback.keys import Key
from pipeline.feedback.records import NewEvent
from pipeline.memory.types import Viewer
from serve.auth import Asker
from serve.engine import EngineAnswer, EngineRequest
from serve.errors import ApiError
from serve.schemas import (
    ChatReply,
    ChatRequest,
    CitedLesson,
    MemoryReport,
    ReplyChoice,
    ReplyMessage,
    Usage,
)
from serve.service import Service

MODEL_NAME = "answerer"
routes = APIRouter()


@routes.post("/v1/chat/completions", response_model=ChatReply)
async def complete(body: ChatRequest, request: Request, key: Asker) -> Response:
    service: Service = request.app.state.service
    reply = await answer(service, body, key, request.state.request_id)
    if body.stream:
        return StreamingResponse(_events(reply), media_type="text/event-stream")
    return JSONResponse(reply.model_dump())


async def answer(service: Service, body: ChatRequest, key: Key, request_id: str) -> ChatReply:
    """One answer, recorded before it is given."""
    began = time.monotonic()
    _check(body, service)
    source = body.user or key.name
    viewer = Viewer(key.tenant, source, body.session)
    found = await service.engine.answer(_engine_request(body, service, viewer, began))
    text, finished = _cut(found.text, body.stops, found.finished)
    reply = _reply(body, found, text, finished)
    milliseconds = (time.monotonic() - began) * 1000
    await service.recorder.record(_event(body, found, reply, key, source, request_id, milliseconds))
    service.meters.answers.inc(tags={"strategy": found.strategy})
    service.meters.answer_ms.observe((time.monotonic() - began) * 1000, tags={"strategy": found.strategy})
    return reply


def messages_of(body: ChatRequest) -> list[Message]:
    """A bare question gets the protocol's prompt: serving and measuring ask alike. A dialogue stays as it is."""
    if len(body.messages) == 1:
        return prompt_messages(body.question)
    return [{"role": message.role, "content": message.text} for message in body.messages]


def _check(body: ChatRequest, service: Service) -> None:
    if body.model not in (None, MODEL_NAME):
        message = f"model: {body.model!r:.80} is not served here: use {MODEL_NAME!r}"
        raise ApiError(404, "model_not_found", message, "model")
    limit = service.recipe.serve.max_question_chars
    length = len(body.question)
    if length > limit:
        message = f"messages: the question has {length} characters, serve.max_question_chars is {limit}: shorten it"
        raise ApiError(422, "string_too_long", message, "messages")


def _engine_request(body: ChatRequest, service: Service, viewer: Viewer, began: float) -> EngineRequest:
    return EngineRequest(
        messages=messages_of(body),
        question=body.question,
        viewer=viewer,
        strategy=body.strategy or service.recipe.memory.strategy,
        options=tuple(body.options),
        min_lesson_seq=body.min_lesson_seq,
        max_new_tokens=body.limit,
        deadline=began + service.recipe.serve.request_timeout_s,
    )


def _cut(text: str, stops: list[str], finished: bool) -> tuple[str, bool]:
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, finished)


def _reply(body: ChatRequest, found: EngineAnswer, text: str, finished: bool) -> ChatReply:
    response_id = f"chatcmpl-{uuid4().hex}"
    cites = [
        CitedLesson(lesson_id=c.lesson_id, weight=c.weight, belief=c.belief, question=c.question, answer=c.answer)
        for c in found.cites
    ]
    return ChatReply(
        id=response_id,
        created=int(time.time()),
        model=MODEL_NAME,
        choices=[ReplyChoice(message=ReplyMessage(content=text), finish_reason="stop" if finished else "length")],
        usage=Usage(
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.tokens,
            total_tokens=found.prompt_tokens + found.tokens,
        ),
        memory=MemoryReport(
            strategy=found.strategy,
            probabilities=found.probabilities,
            lessons=cites,
            null_weight=found.null_weight,
            copied=found.copied,
            state=found.choice.described() if found.choice else {},
            model_version=found.model_version,
            lesson_seq=found.lesson_seq,
            response_id=response_id,
            options=found.options,
            notes=body.notes,
        ),
    )


def _event(
    body: ChatRequest,
    found: EngineAnswer,
    reply: ChatReply,
    key: Key,
    source: str,
    request_id: str,
    milliseconds: float,
) -> NewEvent:
    return answer_event(
        key=key,
        question=body.question,
        answer=reply.choices[0].message.content,
        messages=[{"role": message.role, "content": message.text} for message in body.messages],
        strategy=found.strategy,
        lessons={cite.lesson_id: cite.weight for cite in found.cites},
        model_version=found.model_version,
        milliseconds=round(milliseconds, 1),
        source=source,
        request_id=request_id,
        response_id=reply.id,
        choice=found.choice.body() if found.choice else None,
    )


def _events(reply: ChatReply) -> Iterator[str]:
    """Server-sent chunks, a word at a time; the last one carries ``memory`` and ``usage``."""
    head = {"id": reply.id, "object": "chat.completion.chunk", "created": reply.created, "model": reply.model}
    choice = reply.choices[0]
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in re.findall(r"\s*\S+\s*$|\s*\S+", choice.message.content)]
    for delta in deltas:
        yield _chunk({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    last = {"index": 0, "delta": {}, "finish_reason": choice.finish_reason}
    yield _chunk({**head, "choices": [last], "usage": reply.usage.model_dump(), "memory": reply.memory.model_dump()})
    yield "data: [DONE]\n\n"


def _chunk(body: dict[str, object]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
