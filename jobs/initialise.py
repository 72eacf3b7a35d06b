"""The first start of a home: databases migrated, the recipe's answerer champion version 1, the owner's keys made."""

from __future__ import annotations

import tempfile
from pathlib import Path

from filelock import FileLock
from sqlalchemy import Engine

from jobs import credentials
from jobs.entry import UserError
from pipeline.config import Recipe
from pipeline.feedback.database import open_database
from pipeline.feedback.keys import KeyRing
from pipeline.home import Home
from pipeline.tracking.promotions import champion_version


def initialise(home: Home, recipe: Recipe) -> Engine:
    """Bring ``home`` into being, in the driver and before any worker starts; an initialised home stays as it is."""
    home.create()
    with FileLock(home.root / "initialise.lock"):
        database = open_database(home.events_url)
        if champion_version(database) is None:
            _crown_default(home, recipe, database)
        credentials.ensure(home, KeyRing(database))
    return database


def existing(home: Home) -> Engine:
    """The event log of a home that somebody has initialised."""
    if not home.root.is_dir():
        raise UserError(f"{home.root} is no home yet: start with 'agm serve' or 'agm demo', or set AGM_HOME to yours")
    return open_database(home.events_url)


def _crown_default(home: Home, recipe: Recipe, database: Engine) -> None:
    from pipeline.evaluate.gate import Verdict
    from pipeline.model.bundle import Bundle
    from pipeline.tracking.registry import Registry

    registry = Registry(home, database)
    registry.initialise()
    with tempfile.TemporaryDirectory(dir=home.root) as folder:
        bundle = Path(folder) / "bundle"
        Bundle.initial(recipe).save(bundle)
        version = registry.register(bundle, cycle=0, metrics={}, params={"base": recipe.model.base}, tags={})
    verdict = Verdict(promoted=True, reasons=(f"the untrained {recipe.model.base}, to begin with",), checks=())
    registry.promote(version, verdict, cycle=0)
