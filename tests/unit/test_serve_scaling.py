"""How many replicas there are, and how much each takes, as Ray Serve is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig

from pipeline.config import Recipe
from pipeline.feedback.database import DatabaseError
from serve.admission import admitted
from serve.deploy import AnswererDeployment, Patience, answerer_options, build_app, free_port, open_service
from serve.serve_yaml import ServeArgs, load_serve_file


def options(**settings: Any) -> dict[str, Any]:
    recipe = Recipe().with_changes({f"serve.{name}": value for name, value in settings.items()})
    return answerer_options(ServeArgs(home="/shared/agm", recipe=recipe))


def test_as_many_replicas_as_named_unless_there_may_be_more() -> None:
    fixed = options(replicas=3)
    assert fixed["num_replicas"] == 3
    assert "autoscaling_config" not in fixed


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({}, 32),
        ({"max_batch": 8}, 8),
        ({"max_batch": 128, "max_ongoing_requests": 64}, 64),
        ({"target_ongoing_requests": 12.5}, 12.5),
    ],
)
def test_another_replica_starts_when_the_batches_are_full(settings: dict[str, Any], target: float) -> None:
    scaled = options(replicas=2, max_replicas=5, **settings)
    assert "num_replicas" not in scaled
    told = AutoscalingConfig.model_validate(scaled["autoscaling_config"])
    assert (told.min_replicas, told.max_replicas, told.target_ongoing_requests) == (2, 5, target)
    assert told.target_ongoing_requests < scaled["max_ongoing_requests"]


def test_how_long_a_load_lasts_before_it_counts_is_said() -> None:
    told = AutoscalingConfig.model_validate(
        options(max_replicas=2, upscale_delay_s=5.0, downscale_delay_s=0.0)["autoscaling_config"]
    )
    assert (told.upscale_delay_s, told.downscale_delay_s) == (5.0, 0.0)
    untold = AutoscalingConfig.model_validate(options(max_replicas=2)["autoscaling_config"])
    assert (untold.upscale_delay_s, untold.downscale_delay_s) == (30.0, 600.0)  # as Serve has it


def test_a_replica_that_is_not_needed_any_more_ends_what_it_has_begun() -> None:
    assert options(max_replicas=2, request_timeout_s=30.0)["graceful_shutdown_timeout_s"] > 30


def test_serve_lets_in_more_than_the_api_so_that_the_api_refuses() -> None:
    for settings in ({}, {"replicas": 3}, {"max_replicas": 4}, {"max_ongoing_requests": 256}):
        recipe = Recipe().with_changes({f"serve.{name}": value for name, value in settings.items()})
        assert options(**settings)["max_ongoing_requests"] > admitted(recipe.serve)
    assert admitted(Recipe().with_changes({"serve.max_replicas": 4}).serve) == 64 + 64 / 4


def test_several_nodes_do_not_share_a_file_however_many_replicas_there_are(home_root: Path) -> None:
    for settings in ({"replicas": 2}, {"max_replicas": 2}):
        recipe = Recipe().with_changes({f"serve.{name}": value for name, value in settings.items()})
        with pytest.raises(DatabaseError, match="SQLite and Ray has 2 nodes"):
            open_service(ServeArgs(home=str(home_root), recipe=recipe), 2)


def test_ray_takes_the_options_and_the_example_with_more_replicas(root: Path, tmp_path: Path) -> None:
    text = (root / "examples" / "serve" / "serve.yaml").read_text(encoding="utf-8")
    path = tmp_path / "serve.yaml"
    path.write_text(text.replace("serve: {replicas: 3", "serve: {replicas: 3, max_replicas: 8"), encoding="utf-8")
    args = load_serve_file(path).answerer.args
    assert answerer_options(args)["autoscaling_config"]["target_ongoing_requests"] == 32
    assert ray_serve.deployment(**answerer_options(args))(AnswererDeployment).name == "Answerer"
    assert isinstance(build_app(args), ray_serve.Application)


def test_a_start_may_go_on_for_as_long_as_lessons_are_encoded() -> None:
    times = iter((0.0, 299.0, 300.0, 300.0, 599.0, 600.0, 600.0, 900.0, 901.0))
    patience = Patience(300.0, done=2_000, clock=lambda: next(times))
    ends = [patience.ends(done) for done in (2_000, 3_000, 3_000, 4_000, 4_000, 4_000)]
    assert ends == [False, False, False, False, False, True]


def test_a_free_port_is_none_that_a_starting_process_may_be_given() -> None:
    system = Path("/proc/sys/net/ipv4/ip_local_port_range")
    handed_out = int(system.read_text().split()[0]) if system.exists() else 32_768
    assert all(19_999 < free_port("127.0.0.1", 0) < handed_out for _ in range(20))
