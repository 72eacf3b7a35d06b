"""``/v1/erasures``: erase what somebody said, a lesson, or everything that mentions somebody.

The event log and the memory of the replica that replies are rid of it before the reply, other replicas' with their
next look at the log; the sealer's process erases the copies.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, Field

from pipeline.feedback import erasure
from pipeline.feedback.erasure import Target
from pipeline.feedback.keys import Key
from serve.auth import needs
from serve.errors import ApiError
from serve.lessons import APPLY_TIMEOUT_S
from serve.schemas import Identifier, RequestBody
from serve.service import Service
from serve.watermark import NotYetFollowed

routes = APIRouter()
Admin = Annotated[Key, Depends(needs("admin"))]
Subject = Annotated[str, Field(min_length=1, max_length=1_000)]


class Erasure(RequestBody):
    """Whose or what to erase in the key's tenant. ``subjects``: any text that a row mentions, as whole words."""

    sources: list[Identifier] = Field([], max_length=100)
    lessons: list[Identifier] = Field([], max_length=100)
    subjects: list[Subject] = Field([], max_length=100)


class ErasureReply(BaseModel):
    """``state``: erasing (the copies follow), waiting (for a cycle without it), done."""

    erasure_id: int
    state: Literal["erasing", "waiting", "done"]
    rows: int
    lessons: list[str]
    lesson_seq: int = Field(description="an answer with this min_lesson_seq comes from a memory without it")
    cycles: list[int] = Field([], description="that had trained one of these lessons; known once it is not erasing")
    versions: list[int] = Field([], description="models whose memory layers held one; they do no longer")
    beyond: list[int] = Field([], description="models whose ordinary weights were trained on one, or come from such")


@routes.post("/v1/erasures")
async def erase(body: Erasure, request: Request, key: Admin) -> ErasureReply:
    """It cannot be undone. GET the reply's ``erasure_id`` to see how far it has come."""
    service: Service = request.app.state.service
    try:
        target = Target(key.tenant, tuple(body.sources), tuple(body.lessons), tuple(body.subjects))
        erasure_id = await asyncio.to_thread(erasure.mark, service.log, target)
    except LookupError as error:
        raise ApiError(404, "nothing_matches", str(error)) from None
    except ValueError as error:
        raise ApiError(422, "invalid_value", str(error)) from None
    with suppress(NotYetFollowed):  # it is decided, whether this replica has heard of it by now or not
        await service.lesson_follower.reach(await asyncio.to_thread(service.log.head), APPLY_TIMEOUT_S)
    return await _reply(service, erasure_id, key)


@routes.get("/v1/erasures/{erasure_id}")
async def told(erasure_id: Annotated[int, Path(ge=1, le=2**31)], request: Request, key: Admin) -> ErasureReply:
    return await _reply(request.app.state.service, erasure_id, key)


async def _reply(service: Service, erasure_id: int, key: Key) -> ErasureReply:
    found: dict[str, Any] | None = await asyncio.to_thread(erasure.told, service.log, erasure_id, key.tenant)
    if found is None:
        raise ApiError(404, "unknown_erasure", f"no erasure has the id {erasure_id}", "erasure_id")
    return ErasureReply(erasure_id=erasure_id, lesson_seq=await asyncio.to_thread(service.log.head), **found)
