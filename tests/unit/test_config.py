"""The configuration tree: strict, frozen, and in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config import ConfigError, Recipe, load_recipe, parse_recipe


def test_an_unknown_key_is_refused_with_field_value_and_fix() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({"train": {"learning_rat": 0.1}}, origin="recipe.yaml")
    message = str(caught.value)
    assert "recipe.yaml" in message
    assert "train.learning_rat = 0.1" in message
    assert "learning_rate" in message  # the fix: what is known here


def test_an_unknown_part_names_the_parts_that_there_are() -> None:
    with pytest.raises(ConfigError, match="trian.*known here: model, memory, train"):
        parse_recipe({"trian": {}}, origin="recipe.yaml")


def test_a_value_out_of_range_is_refused_with_field_value_and_bound() -> None:
    with pytest.raises(ConfigError, match=r"serve\.port = 70000: .*less than or equal to 65535"):
        parse_recipe({"serve": {"port": 70000}}, origin="recipe.yaml")


def test_every_mistake_is_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({"serve": {"port": 0}, "gate": {"confidence": 2}, "x": 1}, origin="recipe.yaml")
    assert len(str(caught.value).splitlines()) == 3


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"scaling\.backend is 'gloo'"):
        parse_recipe({"scaling": {"use_gpu": True, "backend": "gloo"}}, origin="recipe.yaml")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just words"])
def test_a_recipe_is_a_mapping(tmp_path: Path, text: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_recipe(file)


def test_broken_yaml_and_a_missing_file_are_told_in_words(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("train: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_recipe(file)
    with pytest.raises(ConfigError, match="no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().train.learning_rate = 1.0


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    recipe = Recipe().with_changes({"train.learning_rate": 0.125, "train.memory.value_layers": (20, 25)})
    recipe.write(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_changes_are_checked_again() -> None:
    assert Recipe().with_changes({"serve.port": 9000}).serve.port == 9000
    with pytest.raises(ConfigError, match="train.speed"):
        Recipe().with_changes({"train.speed": 1})
    with pytest.raises(ConfigError, match="unknown field 'trian.epochs'"):
        Recipe().with_changes({"trian.epochs": 1})
