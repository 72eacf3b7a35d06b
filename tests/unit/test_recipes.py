"""Every YAML file that ships is valid: the recipes, and the cluster for Ray's launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_loads(path: Path) -> None:
    assert isinstance(load_recipe(path), Recipe)


def test_both_sizes_and_the_naive_training_ship() -> None:
    assert {"laptop.yaml", "cluster.yaml", "naive.yaml"} <= {path.name for path in RECIPES}


def test_the_laptop_recipe_is_the_default() -> None:
    assert load_recipe(ROOT / "examples" / "laptop.yaml") == Recipe()


def test_the_fast_recipe_is_the_default_in_larger_batches() -> None:
    spelled_out = {"train.optimizer": "slot_adam", "train.batch_size": 32}
    assert load_recipe(ROOT / "examples" / "fast.yaml") == Recipe().with_changes(spelled_out)


def test_the_two_sizes_name_the_same_fields() -> None:
    laptop, cluster = (
        yaml.safe_load((ROOT / "examples" / name).read_text()) for name in ("laptop.yaml", "cluster.yaml")
    )
    assert set(laptop) == set(cluster)
    assert set(cluster["serve"]) == set(laptop["serve"])
    assert load_recipe(ROOT / "examples" / "cluster.yaml").scaling.use_gpu


def test_naive_training_replays_nothing() -> None:
    assert load_recipe(ROOT / "examples" / "naive.yaml").train.replay_ratio == 0


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_ray_would_refuse_a_misspelt_key(cluster: dict[str, Any]) -> None:
    """The check above is worth something."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config({**cluster, "max_wrokers": 3}))


def test_no_training_lands_on_the_head(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert any("--num-cpus=0" in line for line in cluster["head_start_ray_commands"])


def test_gpu_workers_scale_between_bounds(cluster: dict[str, Any]) -> None:
    gpu = cluster["available_node_types"]["gpu"]
    assert 0 <= gpu["min_workers"] < gpu["max_workers"] <= cluster["max_workers"]
    assert gpu["resources"]["GPU"] >= 1


def test_the_cluster_runs_what_was_tested(cluster: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert f":{pins['ray']}-py311-" in cluster["docker"]["image"]
    assert any("--constraint constraints.txt" in line for line in cluster["setup_commands"])


def test_the_cluster_asks_for_a_token_and_shares_its_home(cluster: dict[str, Any]) -> None:
    options = cluster["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert any(option.startswith("--env AGM_HOME=/mnt/") for option in options)


def test_the_cluster_recipe_fits_the_cluster(cluster: dict[str, Any]) -> None:
    """Training and serving side by side, at most."""
    from jobs.local import shortages

    gpu = cluster["available_node_types"]["gpu"]
    total = {kind: amount * gpu["max_workers"] for kind, amount in gpu["resources"].items()}
    assert shortages(load_recipe(ROOT / "examples" / "cluster.yaml"), total) == []
