"""Where the examples lie: in the checkout, else inside the installed package."""

from __future__ import annotations

from pathlib import Path

import pipeline


def examples_folder() -> Path:
    """The folder of the recipes and of ``world_changes``."""
    package = Path(pipeline.__file__).parent
    checkout = package.parent / "examples"
    return checkout if (package.parent / "pyproject.toml").is_file() and checkout.is_dir() else package / "_examples"
