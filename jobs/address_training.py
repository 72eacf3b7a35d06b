"""``agm pretrain --address``: the head that addresses memory slots, trained on lessons of one's own."""

from __future__ import annotations

from pathlib import Path

from jobs import entry
from jobs.starting import starting_point
from pipeline.data.lines import LessonLine, read_lines
from pipeline.home import submitter_home


def train_address(lessons: Path, out: Path, *, pairs: int, steps: int, seed: int, recipe: Path | None) -> None:
    """Train on the recipe's backbone and key layer, with the shipped natural lines beside the user's."""
    lines = read_lines(lessons, LessonLine)
    with entry.console.status("loading the backbone"):
        from pipeline.memory.router_data import natural_lines
        from pipeline.model.address import save_head
        from pipeline.model.answerer import Answerer
        from pipeline.train.address_fit import AddressMaterial, fit_address

        settings, bundle, _ = starting_point(submitter_home(), recipe)
        backbone = Answerer.load(bundle).backbone
        material = AddressMaterial.of(lines, natural_lines(), seed, pairs)
    if not material.lines:
        raise entry.UserError(f"{lessons}: no lesson has a paraphrase, and a head learns from nothing else")
    layer = settings.train.memory.key_layer
    with entry.bar() as progress:
        task = progress.add_task("reading the questions' states", total=steps)

        def tell(step: int, steps: int, loss: float) -> None:
            progress.update(task, total=steps, completed=step, description=f"training the address (loss {loss:.2f})")

        head = fit_address(backbone, material, layer, seed, steps=steps, told=tell)
    save_head(head, out, backbone.digest, layer)
    entry.console.print(f"{out}: name it as train.memory.head, with train.memory.keys: tokens", highlight=False)
