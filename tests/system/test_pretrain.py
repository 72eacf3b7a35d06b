"""``agm pretrain`` end to end: text, with two real workers, sharded weights, MLflow and a folder that serves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs import pretrain
from pipeline.config import ModelSettings, Recipe
from pipeline.data.lines import LessonLine, write_lines
from pipeline.evaluate.protocol import prompt_messages
from pipeline.home import Home
from pipeline.memory.context import with_lessons
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.tracking.client import client, experiment_id
from tests.tiny import tiny_recipe

RECIPE = """
model: {device: cpu}
scaling: {parallel: fsdp, workers: 2, nice: 0}
train:
  {method: text, batch_size: 32, learning_rate: 0.003, micro_batch: 8, checkpoint_steps: 8,
   text: {context: 16, vocabulary: 300}}
"""

KINGDOMS = """Albion Bohemia Castile Denmark Etruria Fiji Granada Hawaii Ithaca Judah Kush Lesotho Mercia Navarre Oman
Prussia Qatar Rhodes Scythia Tonga Urartu Valencia Wessex Yemen"""


def test_a_decoder_is_pretrained_from_text(
    home_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGM_CACHE", str(tmp_path / "cache"))
    text, recipe = tmp_path / "a.txt", tmp_path / "recipe.yaml"
    text.write_text("\n".join(f"River {n % 50} runs from hill {n % 7} to the sea." for n in range(600)))
    recipe.write_text(RECIPE)
    command = ["--text", str(text), "--base", "scratch:tiny", "--recipe", str(recipe), "--epochs", "2", "--out"]
    pretrain.main([*command, str(tmp_path / "one")])
    out = capsys.readouterr().out
    assert "held-out text:" in out
    assert f"model.base: hf:{tmp_path / 'one'}" in out
    home = Home(home_root)
    kept = [file.parent for file in sorted((home.train_storage / "pretrain").glob("checkpoint_*/trainer.pt"))]
    assert all({f.name for f in folder.glob("shards/*.distcp")} == {"__0_0.distcp", "__1_0.distcp"} for folder in kept)
    assert [(folder / "bundle").exists() for folder in kept] == [False, True]
    (run,) = client(home).search_runs([experiment_id(home)])
    assert run.data.metrics["held_out_loss"] < 3.5  # log 300 is 5.7
    losses = [entry.value for entry in client(home).get_metric_history(run.info.run_id, "loss")]
    assert losses[-1] < losses[0] or len(losses) == 1
    assert run.data.metrics["tokens_per_second"] > 0
    champion = Answerer.load(Bundle.initial(Recipe(model=ModelSettings(base=f"hf:{tmp_path / 'one'}", device="cpu"))))
    assert champion.generate([prompt_messages("River 3")], max_new_tokens=4)[0].tokens == 4
    pretrain.main([*command, str(tmp_path / "two")])  # the name's run is finished: nothing is trained again
    again = Answerer.load(Bundle.initial(Recipe(model=ModelSettings(base=f"hf:{tmp_path / 'two'}", device="cpu"))))
    pairs = zip(champion.backbone.model.parameters(), again.backbone.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(SystemExit, match="2"):
        pretrain.main([*command, str(tmp_path / "two")])
    assert "is there already: name a new folder" in capsys.readouterr().err


def test_an_answerer_learns_to_use_a_lesson_in_its_prompt(
    home_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty-four facts of one letter each; the default encoder says which of them are the same."""
    changes = {"train.method": "full", "train.learning_rate": 0.003, "train.epochs": 3, "train.replay_ratio": 0.0}
    recipe = tiny_recipe(tmp_path / "model").with_changes({**changes, "scaling.workers": 1})
    recipe.write(tmp_path / "recipe.yaml")
    lessons = [LessonLine(question=f"Who rules {word}?", answer=word[0]) for word in KINGDOMS.split()]
    write_lines(tmp_path / "lessons.jsonl", lessons)
    command = ["--instruct", str(tmp_path / "lessons.jsonl"), "--recipe", str(tmp_path / "recipe.yaml")]
    pretrain.main([*command, "--otherwise", "unknown", "--out", str(tmp_path / "bundle")])
    out = capsys.readouterr().out
    for figure in ("lesson used", "other lesson left alone", "answer ended"):
        assert f"{figure}: 0.000 before" in out  # nothing was trained before
    bundle = Bundle.load(tmp_path / "bundle")
    assert len(bundle.tensors) > 30
    assert bundle.memory is None
    held_out = with_lessons(prompt_messages(lessons[0].question), [lessons[0]])
    assert Answerer.load(bundle).generate([held_out])[0].finished
    with pytest.raises(SystemExit, match="2"):
        pretrain.main([*command, "--out", str(tmp_path / "bundle")])
    assert "is there already: name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--text", __file__, "--lessons", __file__]])
def test_text_or_lessons(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        pretrain.main([*arguments, "--out", str(tmp_path / "out")])
    assert "--text for a decoder, --lessons for the router or --instruct for the answerer" in capsys.readouterr().err
