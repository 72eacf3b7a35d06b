"""A small client of the endpoint, for the command line, the demonstration and scripts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from pipeline.data.lines import LessonLine


class ClientError(RuntimeError):
    """The endpoint refused or cannot be reached. ``status`` is 0 when there was no reply."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Reply:
    """One answer, with the memory's part in it."""

    text: str
    response_id: str
    strategy: str
    lessons: list[dict[str, Any]]
    null_weight: float
    probabilities: dict[str, float]
    copied: float  # probability that the text is a lesson's
    model_version: int
    lesson_seq: int
    milliseconds: float  # as seen by this client
    raw: dict[str, Any]
    timing: str = ""  # the reply's Server-Timing header


class Client:
    """Synchronous; safe to share between threads. Close it, or use it in a ``with``."""

    def __init__(self, url: str, key: str, *, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"},
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        question: str,
        strategy: str | None = None,
        user: str | None = None,
        min_lesson_seq: int | None = None,
        options: list[str] | None = None,
        session: str | None = None,
    ) -> Reply:
        """``strategy='weights'`` asks with the memory off."""
        extras = {
            "strategy": strategy,
            "user": user,
            "min_lesson_seq": min_lesson_seq,
            "options": options,
            "session": session,
        }
        body = {"model": "answerer", "messages": [{"role": "user", "content": question}]}
        began = time.perf_counter()
        reply = self._request("POST", "/v1/chat/completions", body | _given(extras))
        raw = reply.json()
        milliseconds = (time.perf_counter() - began) * 1000
        memory = raw["memory"]
        return Reply(
            text=raw["choices"][0]["message"]["content"],
            response_id=raw["id"],
            strategy=memory["strategy"],
            lessons=memory["lessons"],
            null_weight=memory["null_weight"],
            probabilities=memory["probabilities"],
            copied=memory["copied"],
            model_version=memory["model_version"],
            lesson_seq=memory["lesson_seq"],
            milliseconds=milliseconds,
            raw=raw,
            timing=reply.headers.get("server-timing", ""),
        )

    def correct(
        self,
        response_id: str,
        answer: str,
        feedback_id: str | None = None,
        source: str | None = None,
        session: str | None = None,
    ) -> dict[str, Any]:
        """Say what the right answer is. The reply's ``lesson_seq`` is already in force."""
        return self.feedback(response_id, "correction", answer, feedback_id=feedback_id, source=source, session=session)

    def feedback(
        self,
        response_id: str,
        kind: str,
        value: str | float,
        *,
        tags: list[str] | None = None,
        feedback_id: str | None = None,
        source: str | None = None,
        session: str | None = None,
    ) -> dict[str, Any]:
        extras = {"tags": tags, "feedback_id": feedback_id, "source": source, "session": session}
        body = {"response_id": response_id, "kind": kind, "value": value} | _given(extras)
        return self._call("POST", "/v1/feedback", body)

    def teach(self, line: LessonLine, feedback_id: str | None = None) -> dict[str, Any]:
        body = line.model_dump(mode="json", exclude_none=True) | _given({"feedback_id": feedback_id})
        return self._call("POST", "/v1/lessons", body)

    def lessons(
        self, search: str = "", offset: int = 0, limit: int = 50, user: str | None = None, session: str | None = None
    ) -> list[dict[str, Any]]:
        query = {"search": search, "offset": offset, "limit": limit} | _given({"user": user, "session": session})
        found: list[dict[str, Any]] = self._call("GET", "/v1/lessons", query=query)["data"]
        return found

    def amend(self, lesson_id: str, answer: str | None = None, paraphrases: list[str] | None = None) -> dict[str, Any]:
        """Another answer, more phrasings, or both."""
        return self._call("PATCH", f"/v1/lessons/{lesson_id}", _given({"answer": answer, "paraphrases": paraphrases}))

    def explain(self, lesson_id: str, user: str | None = None, session: str | None = None) -> dict[str, Any]:
        """The lesson with the evidence behind its beliefs."""
        who = _given({"user": user, "session": session})
        return self._call("GET", f"/v1/lessons/{lesson_id}/evidence", query=who)

    def expire(
        self, lesson_id: str, expires: str | None = "now", user: str | None = None, session: str | None = None
    ) -> dict[str, Any]:
        """A date, a time, "now", or ``None`` for no end."""
        body = {"expires": expires} | _given({"user": user, "session": session})
        return self._call("POST", f"/v1/lessons/{lesson_id}/expiry", body)

    def reinforce(
        self, lesson_id: str, value: float = 1.0, user: str | None = None, session: str | None = None
    ) -> dict[str, Any]:
        """Evidence that the lesson's answer is right (1) or wrong (-1)."""
        body = {"value": value} | _given({"user": user, "session": session})
        return self._call("POST", f"/v1/lessons/{lesson_id}/rating", body)

    def retract(self, lesson_id: str) -> dict[str, Any]:
        return self._call("DELETE", f"/v1/lessons/{lesson_id}")

    def lineage(self, name: str) -> dict[str, Any]:
        """What stands behind an answer (a response id), or what a feedback has touched (a feedback id)."""
        return self._call("GET", f"/v1/lineage/{name}")

    def version(self) -> dict[str, Any]:
        return self._call("GET", "/version")

    def ready(self) -> bool:
        """Whether the endpoint can answer now."""
        try:
            return "model_version" in self._call("GET", "/readyz")
        except ClientError:
            return False

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, query: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        found: dict[str, Any] = self._request(method, path, body, query).json()
        return found

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, query: dict[str, Any] | None = None
    ) -> httpx.Response:
        try:
            reply = self._http.request(method, path, json=body, params=query)
        except httpx.TimeoutException:
            raise ClientError(0, f"{self.url}{path}: no reply within {self._http.timeout.read:g} s") from None
        except httpx.TransportError as error:
            raise ClientError(0, f"{self.url} cannot be reached ({error}): is 'agm serve' running?") from None
        if reply.is_success:
            return reply
        raise _refusal(reply, path)


def _refusal(reply: httpx.Response, path: str) -> ClientError:
    try:
        error = reply.json()["error"]
        message = f"HTTP {reply.status_code} from {path}: {error['message']}"
        return ClientError(reply.status_code, message, error["code"])
    except (ValueError, KeyError, TypeError):  # a proxy's own words, not this API's
        return ClientError(reply.status_code, f"HTTP {reply.status_code} from {path}: {reply.text[:300]}")


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
