"""The command line: every verb explains itself, and a user's mistake is one line."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cli, credentials, entry, local, submit
from jobs.initialise import existing
from pipeline.config import Recipe
from pipeline.feedback.database import open_database
from pipeline.feedback.keys import KeyRing
from pipeline.home import Home

VERBS = [verb for verb in cli.VERBS if importlib.util.find_spec(f"jobs.{verb}")]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``agm ARGUMENTS``."""
    try:
        cli.main(list(arguments))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


def test_the_group_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert "Example" in out
    assert f"agm {verb}" in out.split("Example", 1)[1]


def test_help_and_mistakes_do_not_wait_for_torch(root: Path) -> None:
    """Nor for Ray or MLflow: together they take seconds to import, and a verb has them when it begins to work."""
    modules = ", ".join(f"jobs.{verb}" for verb in VERBS)
    program = f"import sys, {modules}; print({{'torch', 'ray', 'mlflow', 'transformers'}} & {{*sys.modules}} or 'none')"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "none\n"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_runs_three_ways(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m jobs.VERB`` and ``agm submit VERB`` reach the function that ``agm VERB`` does."""
    module = importlib.import_module(f"jobs.{verb}")
    with pytest.raises(SystemExit) as refused:
        module.main(["--no-such-option"])
    assert refused.value.code == 2
    module.main(["--help"])
    direct = capsys.readouterr().out
    spec = submit.job_spec(verb, ["--help"], Home(Path("/home")), Path("/checkout"))
    assert spec.entrypoint == f"python -m jobs.{verb} --help"
    assert "Example" in direct


def test_an_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "improve")
    assert code == 2
    assert "improve" in err


def test_a_users_mistake_is_one_line_and_exit_code_2(home_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "status")
    assert (code, out) == (2, "")
    assert str(home_root) in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_a_lesson_has_to_be_named(home_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "lessons", "explain")
    assert code == 2
    assert "which lesson? 'agm lessons list'" in err


def test_a_wrong_recipe_is_told_before_anything_starts(
    home_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("serve: {prot: 8000}")
    code, _, err = run(capsys, "serve", "--recipe", str(recipe))
    assert code == 2
    assert "serve.prot = 8000: unknown field" in err
    assert not home_root.exists()


def test_what_is_not_ours_is_not_swallowed() -> None:
    def command() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        entry.run(entry.as_click(command), [], program="x")


def test_a_mistake_is_found_beneath_what_a_worker_raised() -> None:
    wrapped = RuntimeError("task failed")
    wrapped.__cause__ = local.ShortageError("lower scaling.workers")
    assert entry.mistake(wrapped) == "lower scaling.workers"
    assert entry.mistake(RuntimeError("theirs")) is None


def test_an_endpoint_that_is_not_there_is_told_in_words(
    home_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGM_KEY", "agm_x")
    code, _, err = run(capsys, "ask", "Anyone there?", "--url", "http://127.0.0.1:9")
    assert code == 2
    assert "cannot be reached" in err


@pytest.mark.parametrize(
    "arguments",
    [[], ["only a question"], ["q", "a", "--file", __file__], ["--previous", "a", "--file", __file__]],
)
def test_teach_wants_a_lesson_or_a_file(
    arguments: list[str], home_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "teach", *arguments)
    assert code == 2
    assert "question and its answer, or --file" in err


def test_status_and_keys_of_a_home(home_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_database(Home(home_root).create().events_url)
    code, out, _ = run(capsys, "status", "--json")
    assert code == 0
    assert json.loads(out) | {"home": ""} == {
        "home": "", "champion": None, "previous": None, "events": 0, "sealed": 0, "verdicts": [],
    }  # fmt: skip
    code, plain, _ = run(capsys, "keys", "alice", "--role", "teach")
    assert code == 0
    found = KeyRing(existing(Home(home_root))).find(plain.strip())
    assert found is not None
    assert (found.name, found.role) == ("alice", "teach")
    assert "alice" in run(capsys, "keys")[1]
    assert run(capsys, "keys", "alice", "--revoke")[1].strip() == "revoked 1 key of alice"
    assert KeyRing(existing(Home(home_root))).find(plain.strip()) is None
    code, _, err = run(capsys, "keys", "alice", "--revoke")
    assert code == 2
    assert "no key is called 'alice'" in err


def test_rollback_without_an_earlier_champion(home_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_database(Home(home_root).create().events_url)
    code, _, err = run(capsys, "rollback")
    assert code == 2
    assert "no earlier champion" in err


def test_the_owners_keys_are_made_once_and_are_private(home_root: Path) -> None:
    home = Home(home_root).create()
    ring = KeyRing(open_database(home.events_url))
    keys = credentials.ensure(home, ring)
    assert set(keys) == {"ask", "teach", "admin"}
    assert credentials.ensure(home, ring) == keys
    assert stat.S_IMODE(credentials.path(home).stat().st_mode) == 0o600
    assert credentials.key_for(home, "teach") == keys["teach"]


def test_keys_that_the_database_has_lost_are_made_again(home_root: Path, tmp_path: Path) -> None:
    home = Home(home_root).create()
    old = credentials.ensure(home, KeyRing(open_database(home.events_url)))
    fresh = KeyRing(open_database(f"sqlite:///{tmp_path / 'other.db'}"))
    new = credentials.ensure(home, fresh)
    assert new != old
    assert fresh.find(new["admin"]) is not None


def test_agm_key_comes_first(home_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(entry.UserError, match="no ask key"):
        credentials.key_for(Home(home_root), "ask")
    monkeypatch.setenv("AGM_KEY", "agm_mine")
    assert credentials.key_for(Home(home_root), "ask") == "agm_mine"


def test_a_job_is_plain_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGM_EVENTS_URL", "postgresql://db/agm")
    spec = submit.job_spec("update", ["--recipe", "my recipe.yaml"], Home(tmp_path), Path("/checkout"))
    assert spec.entrypoint == "python -m jobs.update --recipe 'my recipe.yaml'"
    env = spec.runtime_env["env_vars"]
    assert env["AGM_HOME"] == str(tmp_path)
    assert env["AGM_EVENTS_URL"] == "postgresql://db/agm"
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"


def test_what_cannot_be_placed_is_named() -> None:
    two_cores = {"CPU": 2.0}
    assert local.shortages(Recipe(), two_cores) == []
    wide = Recipe().with_changes({"scaling.workers": 8})
    assert local.shortages(wide, two_cores) == [
        "scaling.workers x scaling.cpus_per_worker = 4 CPU, and this machine has 2: lower it, or set RAY_ADDRESS"
    ]
    gpu = Recipe().with_changes({"serve.gpus_per_replica": 1})
    assert "serve.gpus_per_replica = 1 GPU, and this machine has 0" in local.shortages(gpu, two_cores)[0]


def test_a_job_gives_no_variable_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {"runtime_env": {"env_vars": {"AGM_HOME": "/shared"}}}
    monkeypatch.setenv(local.JOB_CONFIG, json.dumps(given))
    assert "AGM_HOME" not in local._not_yet_given(local.worker_env(Home(tmp_path)))
    monkeypatch.delenv(local.JOB_CONFIG)
    assert local._not_yet_given({"A": "1"}) == {"A": "1"}
    assert os.environ.get(local.JOB_CONFIG) is None
