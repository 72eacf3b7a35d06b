"""A driver of one training run, for a test that kills it: ``python fit_forever.py HOME CHAMPION RECIPE NAME``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from jobs import local
from pipeline.config import load_recipe
from pipeline.home import Home
from pipeline.train.fit import fit
from tests.tiny import tiny_training_set


def main(root: str, champion: str, recipe: str, name: str) -> None:
    home, settings = Home(Path(root)), load_recipe(recipe)
    with local.connect(home, settings):
        found = fit(
            home, settings, name=name, champion=Path(champion), data=tiny_training_set(), through_seq=9, cycle=1
        )
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ctrl-C is the program's own again"
    print(found.bundle)


if __name__ == "__main__":
    main(*sys.argv[1:])
