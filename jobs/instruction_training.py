"""``agm pretrain --instruct``: the answerer learns to use a lesson that stands in its prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import entry, local
from jobs.starting import check_register, register_version, starting_point
from pipeline.config import ON_LESSONS, Recipe
from pipeline.data.lines import LessonLine, read_lines
from pipeline.home import Home

FEWEST = 20  # lessons: below, a tenth of them shows nothing

# What the phase wants where the recipe trains memory layers, as the default does.
DEFAULTS: dict[str, Any] = {
    "method": "lora", "optimizer": "adam", "learning_rate": 1e-3, "epochs": 2, "target_loss": 0.0,
}  # fmt: skip


def instruction_recipe(given: Recipe, epochs: int | None, seed: int | None) -> Recipe:
    """The recipe with a method that trains ordinary weights, or low-rank maps beside them."""
    fits = given.train.method.partition(":")[0] in ON_LESSONS
    chosen = {} if fits else {f"train.{name}": value for name, value in DEFAULTS.items()}
    named = {"train.epochs": epochs, "train.seed": seed}
    return given.with_changes(chosen | {field: value for field, value in named.items() if value is not None})


def train_instruction(
    home: Home, lessons: Path, out: Path, *, name: str, unknown: bool, register: bool, recipe: Path | None,
    epochs: int | None, seed: int | None,
) -> None:  # fmt: skip
    """Train, show the figures of facts that it did not learn from, and leave a bundle."""
    lines = read_lines(lessons, LessonLine)
    if len(lines) < FEWEST:
        raise entry.UserError(f"{lessons} has {len(lines)} lessons: give at least {FEWEST}")
    if out.exists():
        raise entry.UserError(f"--out {out} is there already: name a new folder")
    given, bundle, version = starting_point(home, recipe)
    if register:
        check_register(home, version)
    settings = instruction_recipe(given, epochs, seed)
    with local.connect(home.create(), settings), entry.bar() as progress:
        from pipeline.model.encoder import load_encoder
        from pipeline.train.instruction import instruct

        task = progress.add_task(f"training {settings.train.method}", total=settings.train.epochs)
        found = instruct(
            home, settings, bundle, lines, load_encoder(settings.model.encoder), name=name, unknown=unknown,
            progress=lambda total, done: progress.update(task, total=total, completed=done),
        )  # fmt: skip
    found.bundle.save(out)
    for figure, after in found.after.items():
        shown = f"{after.value:.3f} ({after.low:.3f} to {after.high:.3f}, n = {after.n})"
        entry.console.print(f"{figure}: {found.before[figure].value:.3f} before, {shown}", highlight=False)
    if register and version is not None:
        metrics = {figure.replace(" ", "_"): after.value for figure, after in found.after.items()}
        added = register_version(home, found.bundle, version, metrics, {"instructed": lessons.name})
        entry.console.print(f"registered as version {added}", highlight=False)
