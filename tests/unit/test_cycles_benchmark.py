"""The benchmark of cycles, on the tiny model: every method runs, within its budget, and writes what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import cycles
from pipeline.config import Recipe, load_recipe
from pipeline.data.lines import LessonLine, write_lines
from tests.tiny import LESSONS


@pytest.fixture
def arguments(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = [LessonLine(question=q, answer=a, neighbours=(f"{q} Really?",)) for q, a in LESSONS]
    write_lines(tmp_path / "lessons.jsonl", lines)
    recipe.with_changes({"train.epochs": 6}).write(tmp_path / "recipe.yaml")
    command = ["cycles", "--lessons", tmp_path / "lessons.jsonl", "--recipe", tmp_path / "recipe.yaml", "--cycles", 2]
    command += ["--per-cycle", 2, "--budget", 40, "--unrelated", 4, "--neighbours", 4, "--retention", 4]
    monkeypatch.setattr(sys, "argv", [*map(str, command), "--threads", "1", "--out", str(tmp_path / "out.json")])
    return tmp_path / "out.json"


def test_every_method_in_one_table(arguments: Path) -> None:
    cycles.main()
    found = json.loads(arguments.read_text())
    assert set(found["methods"]) == {"none", *cycles.ENTRIES}
    assert found["n"] == {"lessons_per_cycle": 2, "unrelated": 4, "neighbours": 4, "retention": 4}
    for name, figures in found["methods"].items():
        assert [len(row) for row in figures["R"]] == [2, 2], name
        taken = figures.get("sequences", [0])
        assert max(taken) < 40 * 2 + 16, name  # the last batch is finished
        assert name in ("none", "memory") or taken[1] >= min(taken[0], 40 * 2), name  # a growing log takes none away
    assert found["methods"]["none"]["backward_transfer"] == 0
    memory = found["methods"]["memory"]
    assert memory["R"][1][1] >= 0.5
    assert memory["unrelated"] == 1.0
    assert arguments.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize("file", ["fast", "laptop", "cluster"])
def test_every_method_changes_the_shipped_recipes(file: str, root: Path) -> None:
    recipe = load_recipe(root / "examples" / f"{file}.yaml")
    trained = {name: recipe.with_changes(entry.changes).train.method for name, entry in cycles.ENTRIES.items()}
    assert trained == {"naive": "full", "replay_all": "full", "lora": "lora", "ewc": "full", "memory": "memory"}


def test_methods_measured_apart_come_into_one_table(
    arguments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*sys.argv[:-2], "--methods"]
    monkeypatch.setattr(sys, "argv", [*command, "memory", "--out", str(tmp_path / "alone.json")])
    cycles.main()
    together = [*command, "none", "--merge", str(tmp_path / "alone.json"), "--out", str(arguments)]
    monkeypatch.setattr(sys, "argv", together)
    cycles.main()
    alone, found = (json.loads(path.read_text()) for path in (tmp_path / "alone.json", arguments))
    assert list(found["methods"]) == ["none", "memory"]
    assert found["methods"]["memory"] == {"circumstances": alone["circumstances"], **alone["methods"]["memory"]}
    monkeypatch.setattr(sys, "argv", [*together, "--budget", "39"])
    with pytest.raises(SystemExit, match="measured with budget = 40, and this is 39"):
        cycles.main()


def test_a_growing_log_costs_no_more_compute() -> None:
    log = [[LessonLine(question=f"{c}-{n}?", answer="a") for n in range(100)] for c in range(4)]
    replayed = cycles.ENTRIES["replay_all"].history(log)
    assert len({line.question for line in replayed}) == 100
    assert {line.question[0] for line in replayed} == set("0123")
    assert cycles.as_many([]) == []
    assert len(cycles.ENTRIES["lora"].history(log)) == 4
    assert cycles.ENTRIES["naive"].history(log) == []
    assert cycles.a_hundredth([]) == []


def test_too_few_lessons_are_refused(arguments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--cycles", "9"])
    with pytest.raises(SystemExit, match="too few lessons for 9 cycles of 2"):
        cycles.main()
