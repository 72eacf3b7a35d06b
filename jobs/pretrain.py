"""``agm pretrain``: the router, trained on lessons of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import entry
from jobs.starting import register_router, starting_point
from pipeline.data.lines import LessonLine, ProbeLine, read_lines
from pipeline.home import submitter_home

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.evaluate.metrics import Interval
    from pipeline.memory.router_fit import Material
    from pipeline.model.encoder import TextEncoder

FEWEST = 20  # lessons: below, a fifth of them shows nothing


def command(
    lessons: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="JSONL, with paraphrases and neighbours")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="the router's tensors (safetensors)")],
    register: Annotated[
        bool, typer.Option("--register", help="the champion with this router as a new version")
    ] = False,
    questions: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSONL: questions people asked, with answers")
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="a router to train further (default: from scratch)")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="lessons to measure on (default: a held-out tenth)"),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the pairs")] = 1,
    pairs: Annotated[int, typer.Option(min=100, help="generated pairs beside those of the lessons")] = 12_000,
    lesson_pairs: Annotated[int, typer.Option(min=100, help="at most so many pairs of the lessons in a pass")] = 50_000,
    seed: Annotated[int, typer.Option(help="of the pairs and of the training")] = 0,
    recipe: entry.RecipePath = None,
) -> None:
    """Train the router, which decides whether a question is a lesson in other words or a neighbour of it.

    The figures printed at the end are measured on lessons that it did not learn from. ``--register`` adds a version of
    the champion with this router to the registry; it does not serve until it is promoted. `--start-from` trains the
    shipped router (pipeline/memory/router.safetensors) further on lessons like yours, which takes fewer of them.

    Example: `agm pretrain --lessons examples/world_changes/lessons.jsonl --out router.safetensors`
    """
    lines = read_lines(lessons, LessonLine)
    if len(lines) < FEWEST:
        raise entry.UserError(f"{lessons} has {len(lines)} lessons: give at least {FEWEST}")
    known, held_out = _parts(lines, check)
    asked = read_lines(questions, ProbeLine) if questions else []
    with entry.console.status("loading the encoder"):
        from pipeline.memory.router_check import held_out_figures
        from pipeline.memory.router_data import natural_lines
        from pipeline.memory.router_fit import Material
        from pipeline.model.encoder import load_encoder

        home = submitter_home()
        settings, bundle, version = starting_point(home, recipe)
        encoder = load_encoder(settings.model.encoder)
    if register and version is None:
        raise entry.UserError(f"--register: {home.root} has no champion yet; start with 'agm serve' or 'agm demo'")
    material = Material(known, natural_lines(), asked, pairs, lesson_pairs)
    tensors = _trained(material, encoder, seed, start_from, epochs, out)
    figures = held_out_figures(tensors, held_out, encoder, settings.memory)
    _show(figures)
    if register and version is not None:
        added = register_router(home, bundle, version, tensors, {name: f.value for name, f in figures.items()})
        entry.console.print(f"registered as version {added}", highlight=False)


def _parts(lines: list[LessonLine], check: Path | None) -> tuple[list[LessonLine], list[LessonLine]]:
    """(learned from, measured on)."""
    if check is not None:
        return lines, read_lines(check, LessonLine)
    return [line for number, line in enumerate(lines) if number % 10], lines[::10]


def _trained(
    material: Material, encoder: TextEncoder, seed: int, start_from: Path | None, epochs: int, out: Path
) -> dict[str, Tensor]:
    """The router's tensors, written to ``out``."""
    from safetensors.torch import load_file, save_file

    from pipeline.memory.router_fit import fit_router

    before = load_file(start_from) if start_from else None
    with entry.bar() as progress:
        task = progress.add_task("training the router", total=1)

        def tell(step: int, steps: int, loss: float) -> None:
            progress.update(task, total=steps, completed=step, description=f"training the router (loss {loss:.2f})")

        tensors = fit_router(material, encoder, seed, start_from=before, epochs=epochs, progress=tell)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out)
    return tensors


def _show(figures: dict[str, Interval]) -> None:
    for name, figure in figures.items():
        shown = f"{name}: {figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f}, n = {figure.n})"
        entry.console.print(shown, highlight=False)


main = entry.main(command)

if __name__ == "__main__":
    main()
