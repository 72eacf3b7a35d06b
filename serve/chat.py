"""``POST /v1/chat/completions``: OpenAI's form, with the memory's part in the extra field ``memory``."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from pipeline.evaluate.protocol import Message, prompt_messages
from pipeline.feedback.intake import answer_event
from pipeline.feedback.keys import Key
from pipeline.feedback.records import NewEvent
from pipeline.memory.followup import readings
from pipeline.memory.types import Viewer
from serve.auth import Asker
from serve.engine import EngineAnswer, EngineRequest
from serve.errors import ApiError, error_of
from serve.running_batch import Sampling
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
STREAMED: dict[str, Any] = {
    "description": "The answer; with `stream: true` server-sent chunks, the last one with `memory`",
    # Before OpenAPI 3.2 the schema of an event stream describes one event.
    "content": {
        "text/event-stream": {
            "schema": {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
        }
    },
}
routes = APIRouter()
log = logging.getLogger("serve.chat")


@routes.post("/v1/chat/completions", response_model=ChatReply, responses={200: STREAMED})
async def complete(body: ChatRequest, request: Request, key: Asker) -> Response:
    service: Service = request.app.state.service
    asked = Asked(body, key, request.state.request_id)
    if body.stream:
        return await _stream(service, asked)
    reply, spent = await answer(service, asked)
    timing = ", ".join(f"{name};dur={milliseconds:.1f}" for name, milliseconds in spent.items())
    return JSONResponse(reply.model_dump(), headers={"server-timing": timing})


@dataclass(frozen=True)
class Asked:
    """One request with what identifies it."""

    body: ChatRequest
    key: Key
    request_id: str
    response_id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    began: float = field(default_factory=time.monotonic)

    @property
    def source(self) -> str:
        return self.body.user or self.key.name

    @property
    def viewer(self) -> Viewer:
        return Viewer(self.key.tenant, self.source, self.body.session)

    def milliseconds(self) -> float:
        return (time.monotonic() - self.began) * 1000


Spent = dict[str, float]  # milliseconds by what they went to


async def answer(
    service: Service, asked: Asked, on_text: Callable[[str], None] | None = None
) -> tuple[ChatReply, Spent]:
    """One answer, recorded before it is given, and what took how long. A streamed answer is recorded before its last
    chunk, which carries its citations."""
    _check(asked.body, service)
    found = await service.engine.answer(_engine_request(asked, service), on_text)
    reply, answered_ms = _reply(asked, found), asked.milliseconds()
    await service.recorder.record(_event(asked, found, reply))
    spent = {"engine": answered_ms, "record": asked.milliseconds() - answered_ms}
    service.meters.answered(found.strategy, found.model_version, found.tokens, asked.milliseconds())
    return reply, spent


async def _stream(service: Service, asked: Asked) -> Response:
    """Errors before the first piece of text keep their HTTP status; later ones become an event."""
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    task = asyncio.create_task(answer(service, asked, pieces.put_nowait))
    task.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        first = await pieces.get()
    except asyncio.CancelledError:
        task.cancel()
        raise
    if first is None and (task.cancelled() or task.exception() is not None):
        await task
    events = _events(asked, task, first, pieces)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _events(
    asked: Asked, task: asyncio.Task[tuple[ChatReply, Spent]], piece: str | None, pieces: asyncio.Queue[str | None]
) -> AsyncIterator[str]:
    """Server-sent chunks as the text comes; the last one with a choice carries ``memory``. A reader that goes away
    frees the row that decodes for it."""
    try:
        yield _chunk(asked, {"role": "assistant", "content": ""})
        while piece is not None:
            yield _chunk(asked, {"content": piece})
            piece = await pieces.get()
        reply, _ = await task
        yield _chunk(asked, {}, reply.choices[0].finish_reason, memory=reply.memory.model_dump())
        if asked.body.wants_usage:
            yield _sse({**_head(asked), "choices": [], "usage": reply.usage.model_dump()})
    except Exception as error:  # the status has been sent: what goes wrong now is told inside the stream
        log.exception("a streamed answer broke off")
        yield _sse(error_of(error))
    finally:
        task.cancel()
    yield "data: [DONE]\n\n"


def _head(asked: Asked) -> dict[str, object]:
    head = {"id": asked.response_id, "object": "chat.completion.chunk", "created": asked.created, "model": MODEL_NAME}
    return dict(head)


def _chunk(asked: Asked, delta: dict[str, str], finish_reason: str | None = None, **extra: object) -> str:
    return _sse({**_head(asked), "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **extra})


def _sse(body: dict[str, object]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def messages_of(body: ChatRequest) -> list[Message]:
    """A bare question gets the protocol's prompt: serving and measuring ask alike. So does a dialogue that brings no
    system message of its own."""
    turns = [{"role": message.role, "content": message.text} for message in body.messages]
    return turns if turns[0]["role"] == "system" else [*prompt_messages("")[:1], *turns]


def _check(body: ChatRequest, service: Service) -> None:
    if body.model not in (None, MODEL_NAME):
        message = f"model: {body.model!r:.80} is not served here: use {MODEL_NAME!r}"
        raise ApiError(404, "model_not_found", message, "model")
    limit = service.recipe.serve.max_question_chars
    length = len(body.question)
    if length > limit:
        message = f"messages: the question has {length} characters, serve.max_question_chars is {limit}: shorten it"
        raise ApiError(422, "string_too_long", message, "messages")


def _engine_request(asked: Asked, service: Service) -> EngineRequest:
    body = asked.body
    messages = messages_of(body)
    return EngineRequest(
        messages=messages,
        question=body.question,
        readings=readings(messages),
        viewer=asked.viewer,
        strategy=body.strategy or service.recipe.memory.strategy,
        options=tuple(body.options),
        min_lesson_seq=body.min_lesson_seq,
        max_new_tokens=body.limit,
        stops=tuple(body.stops),
        sampling=Sampling(body.temperature or 0.0, 1.0 if body.top_p is None else body.top_p, body.seed),
        deadline=asked.began + service.recipe.serve.request_timeout_s,
    )


def _reply(asked: Asked, found: EngineAnswer) -> ChatReply:
    choice = ReplyChoice(message=ReplyMessage(content=found.text), finish_reason="stop" if found.finished else "length")
    cites = [
        CitedLesson(lesson_id=c.lesson_id, weight=c.weight, belief=c.belief, question=c.question, answer=c.answer)
        for c in found.cites
    ]
    return ChatReply(
        id=asked.response_id,
        created=asked.created,
        model=MODEL_NAME,
        choices=[choice],
        usage=Usage(
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.tokens,
            total_tokens=found.prompt_tokens + found.tokens,
        ),
        memory=MemoryReport(
            strategy=found.strategy,
            question=found.question,
            probabilities=found.probabilities,
            lessons=cites,
            null_weight=found.null_weight,
            copied=found.copied,
            state=found.choice.described() if found.choice else {},
            model_version=found.model_version,
            lesson_seq=found.lesson_seq,
            response_id=asked.response_id,
            options=found.options,
            notes=asked.body.notes,
        ),
    )


def _event(asked: Asked, found: EngineAnswer, reply: ChatReply) -> NewEvent:
    return answer_event(
        key=asked.key,
        question=found.question,
        answer=reply.choices[0].message.content,
        messages=[{"role": message.role, "content": message.text} for message in asked.body.messages],
        strategy=found.strategy,
        lessons={cite.lesson_id: cite.weight for cite in found.cites},
        model_version=found.model_version,
        milliseconds=round(asked.milliseconds(), 1),
        source=asked.source,
        request_id=asked.request_id,
        response_id=asked.response_id,
        choice=found.choice.body() if found.choice else None,
        store=asked.body.store,
    )
