"""The README says what is true: its commands exist, its paths exist, its settings parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from jobs.cli import VERBS, command_of


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(agm|make) ", line)]


def test_every_agm_command_of_the_readme_parses(readme: str) -> None:
    found = [words for words in commands(readme) if words[0] == "agm"]
    assert len(found) >= 8
    for _, verb, *arguments in found:
        command = command_of(verb)
        context = command.make_context(verb, list(arguments), resilient_parsing=False)
        assert context.params is not None


def test_every_make_target_of_the_readme_exists(readme: str, root: Path) -> None:
    targets = {words[1] for words in commands(readme) if words[0] == "make"}
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_path_of_the_readme_exists(readme: str, root: Path) -> None:
    paths = set(re.findall(r"`((?:pipeline|jobs|serve|examples|tests)/[\w/.-]+)`", readme))
    assert paths
    assert [path for path in paths if not (root / path).exists()] == []


def test_every_verb_is_described_in_the_readme_or_its_help(readme: str) -> None:
    for verb in VERBS:
        assert f"agm {verb}" in readme or "Example" in (command_of(verb).help or ""), verb
