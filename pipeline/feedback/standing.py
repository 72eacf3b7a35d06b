"""Who speaks, for whom it counts, and how far a key reaches."""

from __future__ import annotations

from typing import Any, get_args

from pipeline.feedback.keys import Key
from pipeline.feedback.records import Scope, new_id
from pipeline.memory.types import Viewer


class NotAllowed(PermissionError):  # noqa: N818
    """The key's role does not reach as far as the request."""


def standing(
    key: Key,
    source: str,
    feedback_id: str | None,
    response_id: str | None,
    asked: str | None = None,
    session: str = "",
) -> dict[str, Any]:
    """The columns that say who spoke, and for whom it counts: the scope ``asked`` for, or as far as the key reaches."""
    scope = _scope(key, asked)
    if scope == "session" and not session:
        raise ValueError("session = '': scope 'session' needs the name of the session")
    return speaker(key, source) | {
        "scope": scope,
        "scope_id": {"user": source, "session": session}.get(scope, ""),
        "feedback_id": feedback_id or new_id("fb"),
        "response_id": response_id,
    }


def speaker(key: Key, source: str) -> dict[str, Any]:
    return {"source": source, "role": key.role, "tenant": key.tenant, "key_name": key.name}


def _scope(key: Key, asked: str | None) -> Scope:
    """The scope that was asked for, where the key reaches as far; by default as far as it reaches."""
    allowed: tuple[Scope, ...] = ("global", "tenant", "user", "session") if key.may("teach") else ("user", "session")
    if asked is None:
        return allowed[0]
    if asked not in get_args(Scope):
        raise ValueError(f"scope = {asked!r}: use one of {', '.join(allowed)}")
    if asked not in allowed:
        raise NotAllowed(f"scope = {asked!r}: a key with role {key.role!r} may use {', '.join(allowed)}")
    return next(scope for scope in allowed if scope == asked)


def owns(place: dict[str, Any], session: str) -> bool:
    """Whether the place is the speaker's own, which an asker may change."""
    return Viewer(place["tenant"], place["source"], session).owns(place["scope"], place["scope_id"])
