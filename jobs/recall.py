"""``agm recall``: a decoder from nothing that learns to use its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from jobs import entry, local
from pipeline.config import load_recipe
from pipeline.home import submitter_home

LENGTHS = (16, 64, 256)  # pairs that the examination tells


def command(
    out: Annotated[Path, typer.Option(file_okay=False, help="a new folder for the model: `model.base: hf:<out>`")],
    base: Annotated[str, typer.Option(help="scratch:<tiny|small|base>[:<slots|fast_weights|none>]")] = "scratch:tiny",
    name: Annotated[str, typer.Option(help="the same name goes on with an interrupted run")] = "recall",
    epochs: Annotated[int, typer.Option(min=1, help="of train.recall.episodes each")] = 20,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="falls to a tenth of itself")] = 3e-3,
    recipe: entry.RecipePath = None,
) -> None:
    """Train a decoder from nothing to recall, from memory layers, pairs that its attention cannot see.

    The memory is written while the model reads, by the delta rule. The figures at the end are recall of keys that
    training never showed, a quarter of them told twice; chance is 1/256.

    Example: `agm recall --out models/tiny --base scratch:tiny`
    """
    if out.exists():
        raise entry.UserError(f"--out {out} is there already: name a new folder")
    changes: dict[str, Any] = {"model.base": base, "train.method": "recall", "train.epochs": epochs}
    changes |= {"train.learning_rate": learning_rate, "train.decay": 0.1, "train.replay_ratio": 0.0}
    settings, home = load_recipe(recipe).with_changes(changes | {"train.target_loss": 0.0}), submitter_home()
    with local.connect(home.create(), settings):
        from pipeline.model.answerer import Answerer
        from pipeline.model.bundle import Bundle
        from pipeline.train.dataset import TrainingSet
        from pipeline.train.fit import fit
        from pipeline.train.recall import examine, start_token

        untrained = home.train_storage / f"{name}-untrained"
        Bundle.initial(settings).save(untrained)
        with entry.bar() as progress:
            task = progress.add_task(f"training {base}", total=epochs)
            trained = fit(
                home, settings, name=name, champion=untrained, data=TrainingSet((), ()), through_seq=0, cycle=0,
                progress=lambda total, done: progress.update(task, total=total, completed=done),
            )  # fmt: skip
    backbone = Answerer.load(Bundle.load(trained.bundle)).backbone
    backbone.model.save_pretrained(out)
    backbone.tokenizer.save_pretrained(out)
    found = [examine(backbone.model, start_token(backbone), pairs, episodes=4, seed=10**6) for pairs in LENGTHS]
    _show(found)
    entry.console.print(f"the model: model.base: hf:{out.resolve()}", markup=False, highlight=False, soft_wrap=True)


def _show(found: list[Any]) -> None:
    from pipeline.evaluate.metrics import share

    table = Table("pairs", "recall", "n", "outdated values", "slots")
    for row in found:
        recall = share(row.right)
        shown = f"{recall.value:.3f} ({recall.low:.3f} to {recall.high:.3f})"
        table.add_row(str(row.pairs), shown, str(recall.n), str(sum(row.stale)), f"{row.slots:.0f}")
    entry.console.print(table)


main = entry.main(command)

if __name__ == "__main__":
    main()
