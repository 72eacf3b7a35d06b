"""Which code is running: what every model version and every measurement writes down beside its figures."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parent


@lru_cache(maxsize=1)
def revision() -> str:
    """The git revision, with a digest of what is not committed; outside a checkout the package's version and digest."""
    try:
        head = _git("rev-parse", "HEAD").strip()
        changes = _git("diff", "HEAD", "--", PACKAGE.name)
    except (OSError, subprocess.SubprocessError):
        return f"{_package_version()}+{package_digest()[:12]}"
    return head + (f"+{sha256(changes.encode()).hexdigest()[:12]}" if changes else "")


def package_digest() -> str:
    """sha256 over the names and bytes of the package's modules, as they are installed."""
    digest = sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    """Raises where the package lies in no checkout of its own, such as in an environment inside of another project."""
    asked = ["git", "-C", str(PACKAGE.parent), *arguments]
    if not (PACKAGE.parent / ".git").exists():
        raise FileNotFoundError(f"{PACKAGE.parent} is no checkout")
    return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout


def _package_version() -> str:
    try:
        return version("autogpt-memory")
    except PackageNotFoundError:
        return "unknown"
