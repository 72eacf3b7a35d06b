"""API keys: shown once, kept as a digest."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import get_args

from sqlalchemy import Engine, delete, insert, select

from pipeline.feedback.database import write_transaction
from pipeline.feedback.records import Role, utc_now
from pipeline.feedback.tables import api_keys

PREFIX = "agm_"
ROLES: tuple[Role, ...] = get_args(Role)  # from least to most


@dataclass(frozen=True)
class Key:
    """Who is calling: a name, what it may do, and whose data it sees."""

    name: str
    role: Role
    tenant: str = "default"

    def may(self, role: Role) -> bool:
        """Whether this key may do what ``role`` may do: ask < teach < admin."""
        return ROLES.index(self.role) >= ROLES.index(role)


class KeyRing:
    """The keys of one installation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, name: str, role: Role, tenant: str = "default") -> str:
        """A new key in plain text; it cannot be read back later."""
        if role not in ROLES:
            raise ValueError(f"role = {role!r}: use one of {', '.join(ROLES)}")
        plain = PREFIX + secrets.token_urlsafe(32)
        row = {"key_hash": _digest(plain), "name": name, "role": role, "tenant": tenant, "created": utc_now()}
        with write_transaction(self._engine) as connection:
            connection.execute(insert(api_keys).values(row))
        return plain

    def revoke(self, name: str, tenant: str = "default") -> int:
        """Take back every key of that name; returns how many there were. A running endpoint notices within seconds."""
        with write_transaction(self._engine) as connection:
            query = delete(api_keys).where(api_keys.c.name == name, api_keys.c.tenant == tenant)
            return connection.execute(query).rowcount

    def find(self, plain: str) -> Key | None:
        """The key that ``plain`` opens.

        The lookup is by digest, so its time tells nothing about a stored key; the final comparison is constant-time.
        """
        digest = _digest(plain)
        query = select(api_keys).where(api_keys.c.key_hash == digest)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        if row is None or not hmac.compare_digest(row["key_hash"], digest):
            return None
        return Key(name=row["name"], role=row["role"], tenant=row["tenant"])


def _digest(plain: str) -> str:
    # A plain hash is enough: the key has 256 random bits, so there is nothing to guess and nothing to salt.
    return "sha256:" + sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
