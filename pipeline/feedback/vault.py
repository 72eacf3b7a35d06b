"""Text at rest: each source's words are encrypted with a key of their own, and a master key wraps those keys.

Envelope encryption: AES-256-GCM, a fresh nonce for every text, the event's id as associated data, so that a body cannot
be moved to another event. The wrapped keys lie in the database beside the events, the master keys somewhere else.
Destroying one wrapped key makes every copy of that source's words unreadable, wherever the copies are.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, Engine, bindparam, delete, insert, select, update

from pipeline.feedback.records import utc_now
from pipeline.feedback.tables import subject_keys

MARK = "agm1"  # first part of an encrypted body; a body from before encryption is JSON and begins with "{"
NONCE_BYTES = 12
_KEYS_OF = select(
    subject_keys.c.subject, subject_keys.c.key_id, subject_keys.c.master_id, subject_keys.c.wrapped
).where(subject_keys.c.subject.in_(bindparam("subjects", expanding=True)))
_CHUNK = 500  # identifiers in one IN (...): below every driver's limit on bound values

Subject = tuple[str, str]  # (tenant, source)


class KeyUnavailable(RuntimeError):  # noqa: N818 - reads as what happened
    """A text cannot be read: its key was destroyed, or the master key that wraps it is not here."""


class KeyService(Protocol):
    """Wraps data keys under a master key. The file is the default; a cloud's key service fits behind the same calls."""

    def wrap(self, key: bytes, context: bytes) -> tuple[str, bytes]:
        """(id of the master key that is active now, wrapped key)."""

    def unwrap(self, master_id: str, wrapped: bytes, context: bytes) -> bytes:
        """The key again; raises :class:`KeyUnavailable`."""

    def rotate(self) -> str:
        """Make a new master key the active one and give its id; the old ones still unwrap."""

    def forget_old(self, used: Collection[str] = ()) -> int:
        """Destroy every master key but the active one and those ``used``; returns how many."""

    def fingerprint(self, text: str) -> str:
        """A keyed digest (hex) that stays the same through rotations and tells nothing without the service."""


class Vault:
    """Encrypts and decrypts bodies; its keys live in the database of ``engine``, wrapped by ``service``."""

    def __init__(self, engine: Engine, service: KeyService) -> None:
        self._engine = engine
        self.service = service
        self._ciphers: dict[str, AESGCM] = {}  # by key id, which is random: an entry can never become wrong

    def keys_for(self, connection: Connection, subjects: Iterable[Subject]) -> dict[Subject, str]:
        """The id of each subject's key, made where there is none, within the transaction that will use it."""
        names = {_digest(subject): subject for subject in sorted(set(subjects))}
        found: dict[Subject, str] = {}
        for part in chunks([*names]):
            for subject, *key in connection.execute(_KEYS_OF, {"subjects": part}):
                found[names[subject]] = key[0]
                self._remember(*key)
        new = [self._new_key(digest) for digest, subject in names.items() if subject not in found]
        if new:
            connection.execute(insert(subject_keys), new)
        return found | {names[row["subject"]]: row["key_id"] for row in new}

    def seal(self, key_id: str, event_id: str, text: str) -> str:
        """``text`` as it is stored; ``key_id`` must come from :meth:`keys_for`."""
        box = self.seal_bytes(key_id, event_id, text.encode("utf-8", "surrogatepass"))
        return f"{MARK}:{key_id}:{base64.b64encode(box).decode()}"

    def seal_bytes(self, key_id: str, place: str, data: bytes) -> bytes:
        """The same for bytes, which open at the same ``place`` alone: an event's id, with what is stored beside it."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._ciphers[key_id].encrypt(nonce, data, place.encode())

    def open(self, bodies: Sequence[tuple[str, str]]) -> list[str]:
        """The texts of (event_id, stored body) pairs; a body from before encryption is returned as it is."""
        self.fetch(name for _, body in bodies if (name := key_id(body)))
        return [self._opened(event_id, body) for event_id, body in bodies]

    def open_bytes(self, key_id: str, place: str, box: bytes) -> bytes:
        """What :meth:`seal_bytes` made; call :meth:`fetch` for many boxes first."""
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise KeyUnavailable(f"event {place}: its key {key_id} was destroyed, so its text cannot be read")
        try:
            return cipher.decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], place.encode())
        except InvalidTag:
            raise KeyUnavailable(
                f"event {place}: its text does not belong to its key {key_id}; it is damaged"
            ) from None

    def fetch(self, key_ids: Iterable[str]) -> None:
        """Unwrap the keys that are not at hand yet; one that was destroyed is passed over."""
        for part in chunks(sorted(set(key_ids) - self._ciphers.keys())):
            query = select(subject_keys).where(subject_keys.c.key_id.in_(part))
            with self._engine.connect() as connection:
                rows = connection.execute(query).mappings().all()
            for row in rows:
                self._remember(row["key_id"], row["master_id"], row["wrapped"])

    def destroy(self, connection: Connection, subjects: Iterable[Subject]) -> int:
        """Forget the subjects' keys for good; returns how many there were. What they wrote later gets a new key."""
        gone: list[str] = []
        for part in chunks([_digest(subject) for subject in set(subjects)]):
            theirs = subject_keys.c.subject.in_(part)
            gone += connection.scalars(select(subject_keys.c.key_id).where(theirs))
            connection.execute(delete(subject_keys).where(theirs))
        for name in gone:  # these alone: other threads may be reading with the others
            self._ciphers.pop(name, None)
        return len(gone)

    def rewrap(self, connection: Connection) -> int:
        """Wrap every key under the active master key, after a rotation; returns how many. No text is rewritten."""
        rows = connection.execute(select(subject_keys)).mappings().all()
        for row in rows:
            key = self._unwrapped(row["key_id"], row["master_id"], row["wrapped"])
            master_id, wrapped = self.service.wrap(key, row["key_id"].encode())
            values = {"master_id": master_id, "wrapped": base64.b64encode(wrapped).decode()}
            connection.execute(update(subject_keys).where(subject_keys.c.key_id == row["key_id"]).values(values))
        return len(rows)

    def masters(self, connection: Connection) -> set[str]:
        """The master keys that wrap a key of this database."""
        return set(connection.scalars(select(subject_keys.c.master_id).distinct()))

    def _new_key(self, digest: str) -> dict[str, str]:
        name, key = secrets.token_hex(8), AESGCM.generate_key(256)
        master_id, wrapped = self.service.wrap(key, name.encode())
        self._ciphers[name] = AESGCM(key)
        return {
            "key_id": name,
            "subject": digest,
            "master_id": master_id,
            "wrapped": base64.b64encode(wrapped).decode(),
            "created": utc_now(),
        }

    def _remember(self, name: str, master_id: str, wrapped: str) -> None:
        if name not in self._ciphers:
            self._ciphers[name] = AESGCM(self._unwrapped(name, master_id, wrapped))

    def _unwrapped(self, name: str, master_id: str, wrapped: str) -> bytes:
        return self.service.unwrap(master_id, base64.b64decode(wrapped), name.encode())

    def _opened(self, event_id: str, body: str) -> str:
        name = key_id(body)
        if name is None:
            return body
        box = base64.b64decode(body.rsplit(":", 1)[1])
        return self.open_bytes(name, event_id, box).decode("utf-8", "surrogatepass")


def key_id(body: str) -> str | None:
    """The key that a stored body needs; ``None`` for one from before encryption."""
    return body.split(":", 2)[1] if body.startswith(MARK + ":") else None


def _digest(subject: Subject) -> str:
    return hashlib.sha256(json.dumps(subject).encode("utf-8", "surrogatepass")).hexdigest()


def chunks(names: list[str]) -> Iterable[list[str]]:
    """``names`` in parts that fit into one ``IN (...)``."""
    return (names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK))
