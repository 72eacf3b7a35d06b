"""``agm pretrain --text``: a decoder from nothing, or one that there is, trained on text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import entry, local
from pipeline.config import Recipe
from pipeline.home import Home

# What pretraining wants, where the recipe says nothing of it: the defaults of train are those of an update.
DEFAULTS: dict[str, Any] = {
    "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup": 0.05,
    "decay": 0.1, "epochs": 1, "batch_size": 16,
}  # fmt: skip


def text_recipe(given: Recipe, base: str, epochs: int | None, seed: int | None) -> Recipe:
    """The recipe with the method ``text`` and this base."""
    chosen = {f"train.{name}": value for name, value in DEFAULTS.items() if name not in given.train.model_fields_set}
    named = {"train.epochs": epochs, "train.seed": seed}
    chosen |= {field: value for field, value in named.items() if value is not None}
    fixed = {"model.base": base, "train.method": "text", "train.replay_ratio": 0.0, "train.target_loss": 0.0}
    return given.with_changes({**chosen, **fixed})


def pretrain_text(
    home: Home, recipe: Recipe, paths: list[Path], out: Path, *, name: str, column: str, start_from: Path | None
) -> None:
    """Tokenise once, train, and leave a folder that ``model.base: hf:<out>`` loads."""
    if out.exists():
        raise entry.UserError(f"--out {out} is there already: name a new folder")
    with local.connect(home.create(), recipe), entry.bar() as progress:
        from pipeline.data.tokens import Blocks
        from pipeline.feedback.database import open_database
        from pipeline.model.bundle import Bundle
        from pipeline.tracking.registry import Registry
        from pipeline.train.dataset import TrainingSet
        from pipeline.train.fit import fit
        from pipeline.train.pretraining import followed, published, untrained
        from pipeline.train.text import held_out

        Registry(home, open_database(home.events_url)).initialise()
        reading = progress.add_task("tokenising", total=1)
        start, blocks = untrained(
            home, recipe, paths, column=column, start_from=start_from,
            tell=lambda done: progress.update(reading, description=f"tokenising ({done:,} tokens)"),
        )  # fmt: skip
        progress.update(reading, completed=1)
        settings = recipe.with_changes({"model.base": f"hf:{start}"})
        task = progress.add_task(f"training {recipe.model.base}", total=1)
        champion = home.train_storage / f"{name}-start"
        Bundle.initial(settings).save(champion)

        def tell(seen: dict[str, float]) -> None:
            shown = f"loss {seen['loss']:.3f}, " if "loss" in seen else ""
            used = f", {seen['mfu']:.0%} of the peak" if "mfu" in seen else ""
            described = f"training {recipe.model.base} ({shown}{seen['tokens_per_second']:,.0f} tokens/s{used})"
            progress.update(task, total=seen["total"], completed=seen["done"], description=described)

        with followed(home, name, settings, tell) as run:
            trained = fit(
                home, settings, name=name, champion=champion, data=TrainingSet(text=str(blocks)), through_seq=0,
                cycle=0,
            )  # fmt: skip
            figures = held_out(published(trained.bundle, out), Blocks(blocks))
            run.metrics({f"held_out_{key}": value for key, value in figures.items()})
    shown = f"held-out text: {figures['loss']:.3f} nats a token, {figures['bits_per_byte']:.3f} bits a byte"
    entry.console.print(f"{shown} (n = {figures['tokens']:,} tokens)", highlight=False)
    entry.console.print(f"the model: model.base: hf:{out.resolve()}", markup=False, highlight=False, soft_wrap=True)
