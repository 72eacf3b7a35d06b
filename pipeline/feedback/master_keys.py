"""The default key service: master keys in a file that only its owner can read.

``AGM_MASTER_KEYS`` names the file; without it, it is ``master_keys.json`` beside the SQLite database, or in the home.
Whoever has a copy of the database and not of this file can read nobody's words. A lost file cannot be replaced.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from filelock import FileLock
from sqlalchemy import URL

from pipeline.feedback.vault import NONCE_BYTES, KeyUnavailable
from pipeline.home import submitter_home

VARIABLE = "AGM_MASTER_KEYS"
FILE_NAME = "master_keys.json"


def key_file(database: URL) -> Path:
    """Where the master keys of a database lie."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    if database.get_backend_name() == "sqlite":
        return Path(str(database.database)).absolute().with_name(FILE_NAME)
    return submitter_home().root / FILE_NAME


class FileKeyService:
    """{"active": id, "keys": {id: key}, "fingerprint": key}, created (mode 0600) when something is first wrapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}

    def wrap(self, key: bytes, context: bytes) -> tuple[str, bytes]:
        # Read anew: a key wrapped under a master key that another process replaced would be lost.
        tree = self._read() or self._created()
        nonce = secrets.token_bytes(NONCE_BYTES)
        return tree["active"], nonce + _cipher(tree, tree["active"]).encrypt(nonce, key, context)

    def unwrap(self, master_id: str, wrapped: bytes, context: bytes) -> bytes:
        tree = self._known or self._read()
        if master_id not in tree.get("keys", {}):
            tree = self._read()  # another process may have rotated
        if master_id not in tree.get("keys", {}):
            raise KeyUnavailable(f"master key {master_id} is not in {self.path}: restore the file, or set {VARIABLE}")
        try:
            return _cipher(tree, master_id).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], context)
        except InvalidTag:
            raise KeyUnavailable(f"{self.path}: master key {master_id} does not open this data key") from None

    def fingerprint(self, text: str) -> str:
        tree = self._known or self._read() or self._created()
        key = base64.b64decode(tree["fingerprint"])
        return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def rotate(self) -> str:
        """A new active master key; the old ones stay until :meth:`forget_old`, for keys that they still wrap."""
        with self._lock():
            tree = self._read() or _fresh()
            tree["active"], tree["keys"] = (new := secrets.token_hex(4)), tree["keys"] | {new: _key()}
            self._write(tree)
        return new

    def forget_old(self, used: Collection[str] = ()) -> int:
        """Destroy every master key but the active one and those ``used``: older copies of wrapped keys open no more."""
        with self._lock():
            tree = self._read()
            kept = {name: key for name, key in tree["keys"].items() if name == tree["active"] or name in used}
            gone = len(tree["keys"]) - len(kept)
            self._write(tree | {"keys": kept})
        return gone

    def _created(self) -> dict[str, Any]:
        with self._lock():
            return self._read() or self._write(_fresh())

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self._known = found
        return found

    def _write(self, tree: dict[str, Any]) -> dict[str, Any]:
        descriptor, partial = tempfile.mkstemp(dir=self.path.parent, prefix=FILE_NAME)  # mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(tree, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too: whatever is wrapped from here on needs it
        finally:
            os.close(folder)
        self._known = tree
        return tree

    def _lock(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.path}.lock", timeout=60)


def _fresh() -> dict[str, Any]:
    first = secrets.token_hex(4)
    return {"active": first, "keys": {first: _key()}, "fingerprint": _key()}


def _key() -> str:
    return base64.b64encode(AESGCM.generate_key(256)).decode()


def _cipher(tree: dict[str, Any], master_id: str) -> AESGCM:
    return AESGCM(base64.b64decode(tree["keys"][master_id]))
