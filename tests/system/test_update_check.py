"""``agm update --out``: a cycle on a user's own file, measured without touching the home."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs import update
from pipeline.data.lines import LessonLine, ProbeLine, write_lines
from pipeline.evaluate.exam import Exam
from pipeline.evaluate.result import Result
from pipeline.evaluate.update_check import Checked, figures_of
from tests.tiny import LESSONS, UNRELATED, tiny_recipe

LINES = [
    LessonLine(question=LESSONS[0][0], answer="x", paraphrases=("zz top 1",), neighbours=("Where is 1984?",)),
    LessonLine(question=LESSONS[1][0], answer="Q"),
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGM_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    recipe = tiny_recipe(tmp_path / "model")
    recipe.with_changes({"model.max_new_tokens": 4, "scaling.workers": 1}).write(tmp_path / "tiny.yaml")
    write_lines(tmp_path / "lessons.jsonl", LINES)
    write_lines(tmp_path / "probes.jsonl", [ProbeLine(question=text) for text in UNRELATED])
    return tmp_path


def test_one_cycle_on_a_file_is_measured(home_root: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lessons, probes, out = (files / name for name in ("lessons.jsonl", "probes.jsonl", "out/result.json"))
    update.main([
        "--lessons", str(lessons), "--probes", str(probes), "--out", str(out), "--recipe", str(files / "tiny.yaml")
    ])  # fmt: skip
    found = Result.read(out)
    assert found.measures["learned"] == found.measures["unrelated"] == 1.0
    assert found.measures["retention_kept"] >= 0.9
    assert found.measures["seconds"] > 0
    assert found.systems["champion"]["2"]["learned"].value == 0
    counted = {name: figure.n for name, figure in found.systems["challenger"]["2"].items()}
    assert [counted[name] for name in ("learned", "paraphrase", "neighbour", "unrelated")] == [2, 1, 1, 3]
    assert "it learned 2 of the 2 lessons" in capsys.readouterr().out
    assert not home_root.exists()


def test_figures_on_hand_worked_answers() -> None:
    """A neighbour that the file corrects itself is judged by its correction; one letter more is not identical."""
    taught = (
        LessonLine(question="a?", answer="Ada", paraphrases=("a, then?", "so a?"), neighbours=("b?", "c?")),
        LessonLine(question="b?", answer="Bo"),
    )
    exam = Exam(taught, (ProbeLine(question="p?"), ProbeLine(question="q?")))
    before = {"a?": "-", "a, then?": "-", "so a?": "-", "b?": "-", "c?": "old", "p?": "one", "q?": "two"}
    after = before | {"a?": "Ada.", "so a?": "ada", "b?": "Bo", "p?": "one."}
    figures = figures_of(exam, Checked(before, (True, True, False)), Checked(after, (True, False, True)))
    shares = {name: figure.value for name, figure in figures["challenger"].items()}
    assert shares == {"learned": 1.0, "paraphrase": 0.5, "neighbour": 1.0, "unrelated": 0.5, "retention_kept": 0.5}
    assert figures["champion"]["unrelated"].value == 1.0


@pytest.mark.parametrize("given", [["--out"], ["--probes"]])
def test_a_check_needs_lessons(files: Path, capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    file = files / "probes.jsonl"
    with pytest.raises(SystemExit) as end:
        update.main([*given, str(file)])
    assert end.value.code == 2
    assert "give --lessons FILE --out FILE" in capsys.readouterr().err
