"""Where a measurement starts: this home's champion, or the recipe's model where there is none yet."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.entry import UserError
from jobs.initialise import existing
from pipeline.config import Recipe, load_recipe
from pipeline.home import Home
from pipeline.revision import revision

if TYPE_CHECKING:
    from pipeline.model.bundle import Bundle


def starting_point(home: Home, recipe: Path | None) -> tuple[Recipe, Bundle, int | None]:
    """(recipe, bundle, champion's version): without ``recipe`` the champion's own, without a champion the default."""
    from pipeline.model.bundle import Bundle
    from pipeline.tracking.registry import Registry

    settings = load_recipe(recipe)
    champion = Registry(home, existing(home)).champion() if home.root.is_dir() else None
    if champion is None:
        return settings, Bundle.initial(settings), None
    bundle = Bundle.load(champion.folder)
    if recipe is not None and settings.model.base != bundle.recipe.model.base:
        raise UserError(
            f"{recipe} names model.base = {settings.model.base}, the champion of {home.root} rests on "
            f"{bundle.recipe.model.base}: leave --recipe out, or set AGM_HOME to another home"
        )
    return (bundle.recipe if recipe is None else settings), bundle, champion.version


def check_register(home: Home, version: int | None) -> None:
    """``--register`` adds a version of the champion, whose ``version`` is: raises :class:`UserError` without one."""
    if version is None:
        raise UserError(f"--register: {home.root} has no champion yet; start with 'agm serve' or 'agm demo'")


def register_version(home: Home, changed: Bundle, parent: int, figures: dict[str, float], tags: dict[str, str]) -> int:
    """A new version: version ``parent`` with what was ``changed``. It serves nobody until it is promoted."""
    from pipeline.tracking.registry import Registry

    with tempfile.TemporaryDirectory(dir=home.root) as folder:
        replace(changed, parent=parent, code=revision()).save(Path(folder) / "bundle")
        return Registry(home, existing(home)).register(
            Path(folder) / "bundle", cycle=changed.cycle, metrics=figures, params={"parent": parent}, tags=tags
        )
