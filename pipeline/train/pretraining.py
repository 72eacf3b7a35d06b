"""Pretraining from text, the driver's side: what a run starts from, and how it is watched."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import Recipe
from pipeline.data.tokens import BLOCKS_FILE, TOKENIZER_FOLDER, Tell, tokenised
from pipeline.evaluate.progress import watched
from pipeline.home import Home
from pipeline.tracking import logging as tracking
from pipeline.train.fit import PROGRESS_FILE


def untrained(
    home: Home, recipe: Recipe, paths: Sequence[Path], *, column: str, start_from: Path | None, tell: Tell | None = None
) -> tuple[Path, Path]:
    """(the folder of the model to start from, the file of blocks to train on), each made once.

    A model from nothing gets a tokenizer trained on the text; one that there is keeps its own.
    """
    from transformers import AutoTokenizer

    from pipeline.model.scratch import build

    text = recipe.train.text
    tokenizer = AutoTokenizer.from_pretrained(start_from) if start_from else None
    folder = tokenised(
        paths, home.root / "text", context=text.context, vocabulary=text.vocabulary, column=column,
        tokenizer=tokenizer, tell=tell,
    )  # fmt: skip
    if start_from:
        return start_from.resolve(), folder / BLOCKS_FILE
    base = recipe.model.base
    start = folder / f"{base.replace(':', '-')}-{hashlib.sha256(base.encode()).hexdigest()[:6]}"
    if not start.exists():
        trained: Any = AutoTokenizer.from_pretrained(folder / TOKENIZER_FOLDER)
        partial = Path(tempfile.mkdtemp(prefix=start.name, dir=folder))
        build(base, trained).save_pretrained(partial)
        trained.save_pretrained(partial)
        partial.rename(start)  # visible whole or not at all
    return start, folder / BLOCKS_FILE


@contextmanager
def followed(home: Home, name: str, recipe: Recipe, tell: Callable[[dict[str, float]], None]) -> Iterator[tracking.Run]:
    """An MLflow run that gets loss and tokens per second while the body trains; ``tell`` gets them, too."""
    file, logged = home.train_storage / name / PROGRESS_FILE, [-1]
    params = {"base": recipe.model.base, **recipe.train.model_dump(exclude={"memory", "recall"})}
    with tracking.run(home, f"pretrain {name}", params=params) as run:

        def look() -> None:
            if not file.exists():
                return
            seen = json.loads(file.read_text(encoding="utf-8"))
            tell(seen)
            if seen["done"] != logged[0]:
                logged[0] = seen["done"]
                figures = {key: seen[key] for key in ("loss", "tokens_per_second", "mfu") if key in seen}
                run.metrics(figures, step=seen["done"])

        with watched(look):
            yield run


def published(bundle: Path, out: Path) -> Any:
    """The trained model as a folder that transformers loads (``model.base: hf:<out>``); its backbone."""
    from pipeline.model.answerer import Answerer
    from pipeline.model.bundle import Bundle

    backbone = Answerer.load(Bundle.load(bundle)).backbone
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=out.name, dir=out.parent))
    backbone.model.save_pretrained(partial)
    backbone.tokenizer.save_pretrained(partial)
    partial.chmod(0o755)
    shutil.move(partial, out)
    return backbone
