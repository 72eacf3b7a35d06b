"""Pretraining from text: every format says the same, every token is predicted once, and what was held out is not."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from pipeline.config import Recipe
from pipeline.data.text import TextError, documents, text_files
from pipeline.data.tokens import BLOCKS_FILE, TOKENIZER_FOLDER, Blocks, tokenised
from pipeline.evaluate.protocol import prompt_messages
from pipeline.home import Home
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.train.dataset import TrainingSet
from pipeline.train.distributed import Sharing
from pipeline.train.loop import Loop
from pipeline.train.methods import build_method
from pipeline.train.pretraining import published, untrained
from pipeline.train.text import TextMethod, held_out

KINGS = ("Ozma", "Caspian", "Théoden", "Arthur")
TEXTS = [f"The ruler of land {n % 40} is {KINGS[n % 4]}, and the {n % 7} rivers run east." for n in range(400)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write_arrow(path: Path) -> None:
    table = pa.table({"text": TEXTS, "id": list(range(len(TEXTS)))})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=64)


WRITERS = {
    "lines.jsonl": lambda path: path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS)),
    "table.parquet": lambda path: pq.write_table(pa.table({"text": TEXTS}), path),
    "data-00000-of-00001.arrow": write_arrow,  # as datasets.save_to_disk leaves it
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_says_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    WRITERS[name](tmp_path / name)
    assert list(documents(text_files([tmp_path]))) == TEXTS
    assert list(documents(text_files([tmp_path / name, tmp_path]))) == TEXTS  # each file once


def test_plain_text_is_one_document_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "b.md").write_text("three")
    assert list(documents(text_files([tmp_path]))) == ["one\n\ntwo", "three"]


def test_what_holds_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"expected a file or a folder of files ending in .txt"):
        text_files([tmp_path])
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(TextError, match=r"line 1: no text in 'text' \(there is body\): name the column"):
        list(documents([tmp_path / "a.jsonl"]))
    assert list(documents([tmp_path / "a.jsonl"], "body")) == ["x"]
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(TextError, match=r"no column 'text' \(there is body\)"):
        list(documents([tmp_path / "a.parquet"]))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.jsonl"
    WRITERS["lines.jsonl"](path)
    return path


@pytest.fixture(scope="module")
def folder(text: Path) -> Path:
    return tokenised([text], text.parent / "tokens", context=16, vocabulary=300)


def test_blocks_are_the_text(folder: Path) -> None:
    """Put together they are the documents with an end after each; every id but the first is predicted once."""
    tokenizer, blocks = AutoTokenizer.from_pretrained(folder / TOKENIZER_FOLDER), Blocks(folder / BLOCKS_FILE)
    rows = blocks.rows(range(len(blocks)))
    assert np.array_equal(rows[:-1, -1], rows[1:, 0])
    said = tokenizer.decode([*rows[0, :1], *rows[:, 1:].flatten()])
    assert "<|im_end|>".join(TEXTS).startswith(said)
    assert len("<|im_end|>".join(TEXTS)) - len(said) < 16 * 40  # less than a block is dropped
    assert len(tokenizer) == 300
    assert sorted([*blocks.trained, *blocks.held_out]) == list(range(len(blocks)))
    shuffled = np.random.default_rng(0).permutation(len(blocks))
    assert np.array_equal(blocks.rows(shuffled.tolist()), rows[shuffled])


def test_text_is_tokenised_once(text: Path, folder: Path) -> None:
    seen = (folder / BLOCKS_FILE).stat().st_mtime_ns
    assert tokenised([text], folder.parent, context=16, vocabulary=300) == folder
    assert (folder / BLOCKS_FILE).stat().st_mtime_ns == seen
    assert tokenised([text], folder.parent, context=8, vocabulary=300) != folder


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("too short")
    with pytest.raises(TextError, match="too short: 0 blocks of 64 tokens"):
        tokenised([tmp_path / "a.txt"], tmp_path / "tokens", context=64, vocabulary=258)
    assert list((tmp_path / "tokens").iterdir()) == []


@pytest.fixture(scope="module")
def started(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe whose base is an untrained decoder over the text's own tokens, and the blocks."""
    changes: dict[str, Any] = {"model.base": "scratch:tiny", "model.device": "cpu", "train.method": "text"}
    changes |= {"train.text.context": 16, "train.text.vocabulary": 300, "train.replay_ratio": 0.0}
    changes |= {"train.learning_rate": 3e-3, "train.epochs": 3, "train.batch_size": 32, "train.target_loss": 0.0}
    recipe = Recipe().with_changes(changes)
    home = Home(tmp_path_factory.mktemp("home")).create()
    start, blocks = untrained(home, recipe, [text], column="text", start_from=None)
    assert (start, blocks) == untrained(home, recipe, [text], column="text", start_from=None)
    return recipe.with_changes({"model.base": f"hf:{start}"}), blocks


def a_loop(started: tuple[Recipe, Path], sharing: Sharing | None = None) -> Loop:
    recipe, blocks = started
    data, base = TrainingSet(text=str(blocks)), Answerer.load(Bundle.initial(recipe))
    return Loop(build_method(base, data, recipe.train, sharing or Sharing()), recipe.train)


def test_a_decoder_learns_text_and_loads_as_a_champion(started: tuple[Recipe, Path], tmp_path: Path) -> None:
    """Text that it has never seen is predicted as well as what is regular in it allows."""
    recipe, path = started
    loop, blocks = a_loop(started), Blocks(path)
    assert isinstance(loop.method, TextMethod)
    assert {task.row for task in loop.method.tasks_of(0)} == set(blocks.trained)
    before = held_out(loop.method.answerer.backbone, blocks)
    list(loop.run())
    loop.method.result().save(tmp_path / "bundle")
    after = held_out(published(tmp_path / "bundle", tmp_path / "out"), blocks)
    assert before["loss"] == pytest.approx(math.log(300), rel=0.3)  # chance, nearly
    assert after["loss"] < 0.5 * before["loss"]
    assert after["bits_per_byte"] == pytest.approx(before["bits_per_byte"] * after["loss"] / before["loss"], rel=1e-6)
    champion = Answerer.load(Bundle.initial(recipe.with_changes({"model.base": f"hf:{tmp_path / 'out'}"})))
    assert held_out(champion.backbone, blocks)["loss"] == pytest.approx(after["loss"], rel=1e-5)
    assert champion.generate([prompt_messages("The ruler of land 3 is")], max_new_tokens=3)[0].tokens > 0


def test_an_interrupted_pretraining_goes_on_bit_by_bit(started: tuple[Recipe, Path], tmp_path: Path) -> None:
    """Inside the first epoch and in the last."""
    end = a_loop(started)
    steps = list(end.run())
    for stop in (3, len(steps) - 2):
        first = a_loop(started)
        list(islice(first.run(), stop))
        torch.save(first.state(), tmp_path / "state.pt")
        second = a_loop(started)
        second.load(torch.load(tmp_path / "state.pt", weights_only=True))
        assert list(second.run()) == steps[stop:]
        assert second.method.result().digest() == end.method.result().digest()


def test_pretraining_goes_on_from_weights_that_there_are(started: tuple[Recipe, Path], text: Path) -> None:
    """``start_from`` is a new run with the model's own tokenizer and weights."""
    recipe, _ = started
    start = Path(recipe.model.base.removeprefix("hf:"))
    home = Home(start.parent / "home").create()
    folder, blocks = untrained(home, recipe, [text], column="text", start_from=start)
    assert folder == start
    about = json.loads((blocks.parent / "about.json").read_text())
    assert about["tokenizer"] != 300
    assert np.array_equal(Blocks(blocks).rows([0, 7]), Blocks(started[1]).rows([0, 7]))
