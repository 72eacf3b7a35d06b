"""Errors in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pipeline.feedback.events import Backpressure
from pipeline.feedback.intake import UnknownLesson, UnknownResponse
from pipeline.feedback.standing import NotAllowed
from serve.decode_loop import DeadlineExceeded, PromptRefused, PromptTooLong
from serve.watermark import NotYetFollowed

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """An answer to the client's mistake. ``code`` is for programs, the message for people: field, value, fix."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code, self.param = code, param


def error_body(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(status: int, message: str, code: str | None, param: str | None = None) -> JSONResponse:
    headers = {"Retry-After": "1"} if status in (409, 429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(status, message, code, param), status, headers)


def install(app: FastAPI) -> None:
    """Every error that leaves the API has one form."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    for failure, (status, code) in FAILURES.items():
        app.add_exception_handler(failure, _failure(status, code))
    app.add_exception_handler(Exception, _unexpected)


FAILURES: dict[type[Exception], tuple[int, str]] = {
    PromptTooLong: (400, "context_length_exceeded"),
    PromptRefused: (400, "prompt_refused"),
    UnknownResponse: (404, "unknown_response"),
    UnknownLesson: (404, "unknown_lesson"),
    NotAllowed: (403, "role_too_low"),
    NotYetFollowed: (409, "lesson_seq_not_reached"),
    DeadlineExceeded: (408, "deadline_exceeded"),
    Backpressure: (503, "storage_behind"),
}


def error_of(error: Exception) -> dict[str, Any]:
    """The body that ``error`` would have had as a reply of its own."""
    if isinstance(error, ApiError):
        return error_body(error.status_code, str(error.detail), error.code, error.param)
    for failure, (status, code) in FAILURES.items():
        if isinstance(error, failure):
            return error_body(status, str(error), code)
    return error_body(500, f"{type(error).__name__} while answering; see the server's log", "internal_error")


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = error.code if isinstance(error, ApiError) else None
    param = error.param if isinstance(error, ApiError) else None
    reply = error_response(error.status_code, str(error.detail), code, param)
    reply.headers.update(error.headers or {})
    return reply


async def _validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or None
    return error_response(422, _explain(param, first), first["type"], param)


def _explain(param: str | None, item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if param is None and item["type"] == "value_error":  # a check over several fields, which names them itself
        return message
    return f"{param or 'the body'}: {message}; got {_short(item.get('input'))}"


def _short(value: Any, limit: int = 80) -> str:
    if isinstance(value, str | Sequence) and len(value) > limit:
        return f"{type(value).__name__} of length {len(value)}"
    return f"{value!r:.{limit}}"


def _failure(status: int, code: str) -> Any:
    async def respond(_: Request, error: Exception) -> JSONResponse:
        return error_response(status, str(error), code)

    return respond


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """The named border: what nobody expected becomes a 500 without its internals; Starlette logs the traceback."""
    message = f"{type(error).__name__} while answering {request.url.path}; see the server's log"
    return error_response(500, message, "internal_error")
