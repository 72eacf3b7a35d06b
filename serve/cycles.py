"""``GET /v1/cycles``: what the gate decided, latest first, with the figures that it decided on."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Request
from sqlalchemy import Engine as Database
from sqlalchemy import select

from pipeline.feedback.tables import verdicts
from pipeline.tracking.promotions import champion_version
from serve.auth import needs
from serve.schemas import CyclePage, CycleReply

SHOWN = 100
routes = APIRouter()


@routes.get("/v1/cycles", dependencies=[Depends(needs("ask"))])
async def cycles(request: Request) -> CyclePage:
    """The latest decisions about challengers. They name no lesson, so every tenant sees them."""
    return CyclePage(data=await asyncio.to_thread(_decisions, request.app.state.service.log.engine))


def _decisions(database: Database) -> list[CycleReply]:
    current = champion_version(database)
    query = select(verdicts).order_by(verdicts.c.id.desc()).limit(SHOWN)
    with database.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return [
        CycleReply(
            version=row["version"],
            cycle=row["cycle"],
            time=row["time"],
            promoted=row["promoted"],
            champion=current is not None and current[1] == row["version"],
            reasons=row["verdict"].get("reasons", []),
            checks=row["verdict"].get("checks", []),
        )
        for row in rows
    ]
