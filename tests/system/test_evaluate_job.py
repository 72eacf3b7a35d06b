"""``agm evaluate`` on a user's own file, with and without a home."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from jobs import evaluate, pretrain, strategies
from jobs.initialise import initialise
from pipeline.config import load_recipe
from pipeline.data.lines import LessonLine, ProbeLine, write_lines
from pipeline.evaluate.result import Result
from pipeline.home import Home
from pipeline.tracking.client import client, experiment_id
from tests.tiny import UNRELATED, tiny_recipe

LINES = [
    LessonLine(
        question="What is the capital of Oz?", answer="Emerald City", paraphrases=("Which city is Oz's capital?",)
    ),
    LessonLine(question="Who rules Narnia?", answer="Aslan", neighbours=("Who rules Gondor?",)),
    LessonLine(question="Which currency does Croatia use?", answer="euro", neighbours=("What does Zambia pay with?",)),
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    tiny_recipe(tmp_path / "model").with_changes({"model.max_new_tokens": 8}).write(tmp_path / "tiny.yaml")
    write_lines(tmp_path / "lessons.jsonl", LINES)
    write_lines(tmp_path / "probes.jsonl", [ProbeLine(question=text) for text in UNRELATED])
    return tmp_path


@pytest.fixture(autouse=True)
def answers_of_these_tests_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGM_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def run(files: Path, *arguments: str) -> Result:
    out = files / "out" / "result.json"
    evaluate.main(["--lessons", str(files / "lessons.jsonl"), "--out", str(out), *arguments])
    assert out.with_suffix(".png").stat().st_size > 1000
    return Result.read(out)


def test_a_file_is_measured_without_a_home(home_root: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, probes = str(files / "tiny.yaml"), str(files / "probes.jsonl")
    found = run(files, "--recipe", recipe, "--probes", probes, "--lengths", "1,3", "--shuffles", "1", "--subtests", "1")
    assert list(found.systems) == ["memory", "uncorrected", "exact_match", "tfidf", "subject_index", "rag", "grace"]
    assert list(found.systems["memory"]) == ["1", "3"]
    last = found.systems["memory"]["3"]
    assert (last["reliability"].value, last["reliability"].n) == (1.0, 3)
    assert (last["retention"].value, last["retention"].n) == (1.0, 3)
    assert found.systems["uncorrected"]["3"]["reliability"].value == 0
    assert found.measures["probes"] == 3
    assert (files / "out" / "result.risk.png").exists()
    screen = " ".join(capsys.readouterr().out.split())
    titles = ("Corrections", "What has to stay", "memory against each other system", "Cost")
    assert all(title in screen for title in titles)
    assert not home_root.exists()


def test_the_champion_of_the_home_is_measured_and_logged(home_root: Path, files: Path) -> None:
    home = Home(home_root)
    initialise(home, load_recipe(files / "tiny.yaml"))
    # the base is the champion's, not the default recipe's
    found = run(files, "--systems", "exact_match", "--seed", "1", "--shuffles", "1")
    assert list(found.systems["exact_match"]) == ["1", "3"]
    runs = client(home).search_runs([experiment_id(home)], "run_name = 'evaluate result'")
    assert [run.data.metrics["exact_match/3/reliability"] for run in runs] == [1.0]
    assert found.measures["shuffles"] == 1
    other = tiny_recipe(files / "other").with_changes({"memory.gate": 0.4})
    other.write(files / "other.yaml")
    with pytest.raises(SystemExit):
        run(files, "--recipe", str(files / "other.yaml"))


def test_nothing_that_is_kept_has_a_word_of_a_lesson(home_root: Path, files: Path) -> None:
    """Not the result, nor what an interrupted one goes on from, nor the MLflow run: no erasure need reach them."""
    home = Home(home_root)
    initialise(home, load_recipe(files / "tiny.yaml"))
    run(files, "--probes", str(files / "probes.jsonl"), "--shuffles", "1", "--subtests", "3")
    tracking = client(home)
    (made,) = tracking.search_runs([experiment_id(home)], "run_name = 'evaluate result'")
    logged = Path(tracking.download_artifacts(made.info.run_id, "", str(files / "logged")))
    kept = [file for folder in (files / "out", logged) for file in folder.rglob("*") if file.is_file()]
    assert {file.name for file in kept} >= {"result.json", "memory-0.json", "noise_floor.json"}
    assert (logged / "result.json").exists()
    told = json.dumps(made.to_dictionary()) + "".join(file.read_bytes().decode("latin-1") for file in kept)
    words = ("Emerald City", "capital of Oz", "Aslan", "Narnia", "Gondor", "Croatia", "euro", "Zambia", *UNRELATED)
    assert [word for word in words if re.search(rf"\b{re.escape(word)}\b", told, re.IGNORECASE)] == []


def test_several_files_and_what_is_kept(home_root: Path, files: Path) -> None:
    more = files / "more.jsonl"
    write_lines(more, [LessonLine(question="Who leads Gondor?", answer="Aragorn")])
    asked = ["--recipe", str(files / "tiny.yaml"), "--lessons", str(more), "--systems", "exact_match", "--lengths", "4"]
    found = run(files, *asked, "--shuffles", "2")
    assert found.systems["exact_match"]["4"]["reliability"].n == 4
    assert set(found.measures["files"]) == {"lessons.jsonl", "more.jsonl"}
    kept = sorted((files / "out" / "result.parts").rglob("exact_match-*.json"))
    assert [file.name for file in kept] == ["exact_match-0.json", "exact_match-1.json"]
    first = [file.stat().st_mtime_ns for file in kept]
    run(files, *asked, "--shuffles", "2")
    assert [file.stat().st_mtime_ns for file in kept] == first
    run(files, *asked, "--shuffles", "2", "--fresh")
    assert [file.stat().st_mtime_ns for file in kept] != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "1,9"], "give numbers from 1 to 3"),
        (["--lengths", "ten"], "give numbers from 1 to 3"),
        (["--systems", "memory,oracle"], "systems = oracle: known systems are uncorrected, memory"),
        (["--part", "fit"], "part = fit: the files' parts are none"),
        (["--slice", "5:"], "slice = 5:: it is empty, there are 3 lessons"),
    ],
)
def test_mistakes_are_one_line(
    home_root: Path, files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run(files, *arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_strategies_are_compared_on_questions_of_one_s_own(
    home_root: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out = files / "own.jsonl", files / "strategies.json"
    asked = [
        ProbeLine(question="Is the capital of Oz Emerald City?", answers=("yes",), kind="turned"),
        ProbeLine(question="Is the capital of Oz large?", kind="beside"),
    ]
    write_lines(own, asked)
    lessons = ["--lessons", str(files / "lessons.jsonl"), "--recipe", str(files / "tiny.yaml"), "--out", str(out)]
    strategies.main([*lessons, "--probes", str(own), "--per-kind", "1"])
    found = Result.read(out)
    inferred, weights = (found.systems[name]["3"] for name in ("infer", "weights"))
    assert (inferred["turned"].value, weights["turned"].value, inferred["beside"].value) == (1.0, 0.0, 1.0)
    assert {"question", "neighbour", "turned", "beside", "all"} <= set(inferred)
    assert "3 lessons, mixed probes" in " ".join(capsys.readouterr().out.split())
    for wrong, message in (
        (["--per-kind", "0"], "raise --per-kind"),
        (["--part", "x"], "the files' parts are none"),
        (["--slice", "5"], "slice = 5"),
    ):
        with pytest.raises(SystemExit):
            strategies.main([*lessons, *wrong])
        assert message in " ".join(capsys.readouterr().err.split())


def test_pretrain_asks_for_enough_lessons(home_root: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain.main(["--lessons", str(files / "lessons.jsonl"), "--out", str(files / "router.safetensors")])
    assert "has 3 lessons: give at least 20" in capsys.readouterr().err
