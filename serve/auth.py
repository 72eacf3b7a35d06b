"""Who asks: Bearer keys with a role and a tenant. The tenant comes from the key and from nowhere else."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from pipeline.feedback.keys import Key, KeyRing
from pipeline.feedback.records import Role
from serve.errors import ApiError
from serve.limits import retry_after

REMEMBERED_S = 5.0  # a revoked key works at most this much longer
MAX_REMEMBERED = 1_024
BEARER = HTTPBearer(auto_error=False, description="an API key; 'agm keys NAME --role ROLE' makes one")  # for OpenAPI


class Gatekeeper:
    """Looks keys up in the key ring and remembers the good ones briefly, by digest."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._known: dict[bytes, tuple[Key, float]] = {}

    async def identify(self, authorization: str | None) -> Key:
        scheme, _, plain = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not plain.strip():
            message = "no API key: send 'Authorization: Bearer <key>' ('agm serve' creates local keys)"
            raise ApiError(401, "missing_key", message)
        plain = plain.strip()
        digest = hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()
        key, until = self._known.get(digest, (None, 0.0))
        if key is None or until < time.monotonic():
            key = await asyncio.to_thread(self._ring.find, plain)
            self._remember(digest, key)
        if key is None:
            raise ApiError(401, "unknown_key", "this API key is not known here: check it, or create one")
        return key

    def _remember(self, digest: bytes, key: Key | None) -> None:
        self._known.pop(digest, None)
        if key is None:
            return
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[digest] = (key, time.monotonic() + REMEMBERED_S)


def needs(role: Role) -> Callable[[Request], Awaitable[Key]]:
    """A FastAPI dependency: the request's key, which must have at least ``role``."""

    async def authorised(request: Request, _: Annotated[Any, Security(BEARER)] = None) -> Key:
        gatekeeper: Gatekeeper = request.app.state.service.gatekeeper
        key = await gatekeeper.identify(request.headers.get("authorization"))
        if not key.may(role):
            raise ApiError(403, "role_too_low", f"this needs a key with role {role!r}; yours has {key.role!r}")
        wait_s = request.app.state.service.limiter.wait_s(key)
        if wait_s:
            message = f"this key may ask again in {wait_s:.1f} s: serve.requests_per_minute is reached"
            raise ApiError(429, "rate_limit_exceeded", message, headers={"Retry-After": retry_after(wait_s)})
        return key

    return authorised


Asker = Annotated[Key, Depends(needs("ask"))]
Teacher = Annotated[Key, Depends(needs("teach"))]
