"""The HTTP application: routes, error form, request ids, size cap, health and the page."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata, resources
from typing import Literal
from uuid import uuid4

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import chat, cycles, erasures, errors, lessons
from serve.admission import API_GRACE_S, Room, TimeLimit, admitted
from serve.auth import needs
from serve.body_ahead import Receiver
from serve.errors import ApiError, error_response
from serve.schemas import ErrorReply, ModelPage, ModelReply
from serve.service import READY_TIMEOUT_S, Service

MAX_BODY_BYTES = 1 << 20
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
REFUSALS: tuple[int, ...] = (400, 401, 403, 404, 408, 409, 413, 422, 429, 503)
REQUEST_ID = re.compile(r"[\w.:-]{1,128}")


def build(service: Service, *, echo_request_id: bool = True) -> FastAPI:
    """The application over one replica's parts, which it starts and closes. Serve's proxy echoes request ids itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="Auto-GPT Memory",
        version=version(),
        docs_url=None,  # its page loads from another host
        redoc_url=None,
        lifespan=lifespan,
        responses={status: {"model": ErrorReply} for status in REFUSALS},
    )
    app.state.service = service
    app.state.started = int(time.time())
    errors.install(app)
    app.include_router(chat.routes)
    app.include_router(lessons.routes)
    app.include_router(cycles.routes)
    app.include_router(erasures.routes)
    _add_health(app, service)
    _add_models(app, service)
    _add_page(app)
    settings = service.recipe.serve
    app.add_middleware(BodyLimit)
    app.add_middleware(Receiver)
    app.add_middleware(TimeLimit, seconds=settings.request_timeout_s + API_GRACE_S)
    app.add_middleware(Room, most=admitted(settings))
    app.add_middleware(RequestId, echo=echo_request_id)
    return app


def version() -> str:
    try:
        return metadata.version("autogpt-memory")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0+source"


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def alive() -> JSONResponse:
        """The process runs and follows the log."""
        if not service.alive():
            return error_response(503, "a background task of the replica has ended", "stopped")
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        """The answer path works from end to end."""
        try:
            await asyncio.wait_for(service.ready(), READY_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - the border of readiness: any failure means "not ready", said in words
            return error_response(503, f"not ready: {type(error).__name__}: {error}", "not_ready")
        return JSONResponse({"status": "ready", "model_version": service.engine.served.version})

    @app.get("/metrics", dependencies=[Depends(needs("ask"))], response_class=PlainTextResponse)
    async def metrics() -> str:
        """Prometheus's text form, of the replica that the request reached."""
        return service.meters.text()


def _add_page(app: FastAPI) -> None:
    """Three files as they are: no build step, and nothing from another host."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _page_file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: Literal["style.css", "app.js"]) -> Response:
        return _page_file(name)


def _page_file(name: str) -> Response:
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}[name.rpartition(".")[2]]
    text = resources.files("serve").joinpath("page", name).read_text(encoding="utf-8")
    return Response(text, media_type=kind, headers=PAGE_HEADERS)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", dependencies=[Depends(needs("ask"))])
    async def models(request: Request) -> ModelPage:
        model = ModelReply(id=chat.MODEL_NAME, created=request.app.state.started, version=service.engine.served.version)
        return ModelPage(data=[model])

    @app.get("/version", dependencies=[Depends(needs("ask"))])
    async def describe() -> dict[str, object]:
        return {
            "version": version(),
            "model_version": service.engine.served.version,
            "lesson_seq": service.engine.followed.value,
            "canary": canary[0].model_dump() if (canary := service.engine.canary) else None,
            "refused_champion": service.champion_follower.last_refusal,
        }


class RequestId:
    """Honours ``x-request-id``, or makes one; it is in the reply's headers and in the answer's record."""

    def __init__(self, app: ASGIApp, echo: bool = True) -> None:
        self.app = app
        self.echo = echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else f"req_{uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self.app(scope, receive, send_with_id if self.echo else send)


class BodyLimit:
    """Refuses a body over ``MAX_BODY_BYTES`` while it arrives, whatever its headers say."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            await error_response(413, _too_large(int(declared)), "body_too_large")(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise ApiError(413, "body_too_large", _too_large(seen))
            return message

        await self.app(scope, counted, send)


def _too_large(size: int) -> str:
    return f"the body has {size} bytes or more, at most {MAX_BODY_BYTES}: send less at once"
