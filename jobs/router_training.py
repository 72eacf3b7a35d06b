"""``agm pretrain --lessons``: the router, trained on lessons of one's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import entry
from jobs.starting import check_register, register_version, starting_point
from pipeline.data.lines import LessonLine, ProbeLine, read_lines
from pipeline.home import submitter_home

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.evaluate.metrics import Interval
    from pipeline.memory.router_fit import Material
    from pipeline.model.encoder import TextEncoder

FEWEST = 20  # lessons: below, a fifth of them shows nothing


@dataclass(frozen=True)
class RouterTraining:
    """What the command line says about it."""

    lessons: Path
    out: Path
    register: bool
    questions: Path | None
    start_from: Path | None
    check: Path | None
    epochs: int
    pairs: int
    lesson_pairs: int
    style: str
    seed: int
    recipe: Path | None


def train_router(asked: RouterTraining) -> None:
    """Train, show the figures of lessons that it did not learn from, and register it where that is wanted."""
    lines = read_lines(asked.lessons, LessonLine)
    if len(lines) < FEWEST:
        raise entry.UserError(f"{asked.lessons} has {len(lines)} lessons: give at least {FEWEST}")
    if asked.style != "both" and asked.start_from is None:
        raise entry.UserError(f"--style {asked.style}: the other style comes from a router: give --start-from")
    questions = read_lines(asked.questions, ProbeLine) if asked.questions else []
    with entry.console.status("loading the encoder"):
        from pipeline.memory.clusters import apart
        from pipeline.memory.router_check import held_out_figures
        from pipeline.memory.router_data import natural_lines
        from pipeline.memory.router_fit import Material
        from pipeline.model.encoder import load_encoder

        home = submitter_home()
        settings, bundle, version = starting_point(home, asked.recipe)
        encoder = load_encoder(settings.model.encoder)
    if asked.register:
        check_register(home, version)
    known, held_out = _parts(lines, asked.check, encoder)
    if len(known) < FEWEST // 2:
        raise entry.UserError(f"{asked.lessons}: {len(known)} lessons are about other facts than those to measure on")
    material = Material(known, apart(natural_lines(), held_out, encoder), questions, asked.pairs, asked.lesson_pairs)
    tensors = _trained(material, encoder, asked)
    figures = held_out_figures(tensors, held_out, encoder, settings.memory)
    _show(figures)
    if asked.register and version is not None:
        measured = {name: figure.value for name, figure in figures.items()}
        added = register_version(home, replace(bundle, router=tensors), version, measured, {"router": "new"})
        entry.console.print(f"registered as version {added}", highlight=False)


def _parts(
    lines: list[LessonLine], check: Path | None, encoder: TextEncoder
) -> tuple[list[LessonLine], list[LessonLine]]:
    """(learned from, measured on): no fact is in both, in whatever words."""
    from pipeline.memory.clusters import apart, split

    if check is None:
        return split(lines, encoder)
    held_out = read_lines(check, LessonLine)
    return apart(lines, held_out, encoder), held_out


def _trained(material: Material, encoder: TextEncoder, asked: RouterTraining) -> dict[str, Tensor]:
    """The router's tensors, written to its file."""
    from safetensors.torch import load_file, save_file

    from pipeline.memory.pair_encoder import STYLES
    from pipeline.memory.router_fit import fit_router

    styles = [name for name in STYLES if asked.style in (name, "both")]
    before = load_file(asked.start_from) if asked.start_from else None
    with entry.bar() as progress:
        task = progress.add_task("training the router", total=1)

        def tell(step: int, steps: int, loss: float) -> None:
            progress.update(task, total=steps, completed=step, description=f"training the router (loss {loss:.2f})")

        tensors = fit_router(
            material, encoder, asked.seed, start_from=before, styles=styles, epochs=asked.epochs, progress=tell
        )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, asked.out)
    return tensors


def _show(figures: dict[str, Interval]) -> None:
    for name, figure in figures.items():
        shown = f"{name}: {figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f}, n = {figure.n})"
        entry.console.print(shown, highlight=False)
