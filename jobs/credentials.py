"""The keys of this home's owner: plain in ``AGM_HOME/credentials.json`` (mode 0600), digests in the database."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import get_args

from filelock import FileLock

from jobs.entry import UserError
from pipeline.feedback.keys import KeyRing
from pipeline.feedback.records import Role
from pipeline.home import Home

KEY_VARIABLE = "AGM_KEY"
ROLES: tuple[Role, ...] = get_args(Role)


def path(home: Home) -> Path:
    return home.root / "credentials.json"


def ensure(home: Home, ring: KeyRing) -> dict[Role, str]:
    """One key a role, made at the first start and again when the database no longer knows them."""
    with FileLock(home.root / "credentials.lock"):
        keys = _read(home)
        missing = [role for role in ROLES if role not in keys or ring.find(keys[role]) is None]
        for role in missing:
            keys[role] = ring.create(f"local-{role}", role)
        if missing:
            _write(home, keys)
    return keys


def key_for(home: Home, role: Role) -> str:
    """``AGM_KEY`` where it is set, else this home's own key for ``role``."""
    key = os.environ.get(KEY_VARIABLE) or _read(home).get(role)
    if not key:
        raise UserError(
            f"no {role} key: set {KEY_VARIABLE}, or start the endpoint here with 'agm serve', which makes {path(home)}"
        )
    return key


def _read(home: Home) -> dict[Role, str]:
    file = path(home)
    keys: dict[Role, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return keys


def _write(home: Home, keys: dict[Role, str]) -> None:
    handle, partial = tempfile.mkstemp(dir=home.root, prefix="credentials")  # mkstemp's mode is 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(keys, file, indent=2)
    os.replace(partial, path(home))
