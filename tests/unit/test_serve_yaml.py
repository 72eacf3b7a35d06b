"""serve.yaml is read strictly: Ray itself ignores what it does not know."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from pipeline.config import ConfigError
from serve.deploy import PROXY_ENV
from serve.serve_yaml import load_serve_file


def test_the_example_is_valid_here_and_for_ray(root: Path) -> None:
    path = root / "examples" / "serve" / "serve.yaml"
    found = load_serve_file(path)
    assert found.answerer.args.recipe.serve.replicas == 3
    assert found.controller_options.runtime_env.env_vars == PROXY_ENV
    ServeDeploySchema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("proxy_location", "proxy_locaton", "proxy_locaton: Extra inputs"),
        ("env_vars", "env_var", "controller_options.runtime_env.env_var: Extra inputs"),
        ("port: 8000", "prot: 8000", "http_options.prot: Extra inputs"),
        ("max_batch: 32", "max_bach: 32", "applications.0.args.recipe.serve.max_bach: Extra inputs"),
        ("request_timeout_s: 65", "request_timeout_s: 60", "request_timeout_s = 60 would end requests.* make it 65"),
        ("replicas: 3", "replicas: 3, max_replicas: 2", "max_replicas = 2 is below replicas = 3: raise it"),
        ("replicas: 3", "replicas: 3, target_ongoing_requests: 8", "no effect without max_replicas"),
        ("replicas: 3", "max_replicas: 2, target_ongoing_requests: 65", "above max_ongoing_requests = 64.*: lower it"),
        ("route_prefix: /", "route_prefix: /api", "write /"),
        ("deploy:build_app", "deploy:build_ap", "applications.0.import_path"),
    ],
)
def test_what_is_wrong_is_named(root: Path, tmp_path: Path, old: str, new: str, says: str) -> None:
    text = (root / "examples" / "serve" / "serve.yaml").read_text(encoding="utf-8")
    wrong = tmp_path / "serve.yaml"
    wrong.write_text(
        text.replace(old, new, 1) if old != "build_app" else text.replace("deploy:build_app", "deploy:build_ap")
    )
    with pytest.raises(ConfigError, match=says):
        load_serve_file(wrong)
