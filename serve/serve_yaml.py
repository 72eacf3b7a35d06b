"""``serve.yaml``, the file that ``serve deploy`` takes, read strictly: Ray ignores a key that it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from pipeline.config import ConfigError, Recipe, Settings

PROXY_GRACE_S = 5.0  # the proxy's time-out over serve.request_timeout_s, so that the API ends a request itself
BUILDERS = {"serve.deploy:build_app": "/", "serve.deploy:build_sealer": None}


class ServeArgs(Settings):
    """What the replicas need; the typed argument of both builders. ``home`` is absolute."""

    home: str
    recipe: Recipe = Recipe()


class HttpOptions(Settings):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    request_timeout_s: float | None = Field(None, gt=0)  # Ray's own default: none


class RuntimeEnv(Settings):
    env_vars: dict[str, str] = Field(default_factory=dict)


class ControllerOptions(Settings):
    runtime_env: RuntimeEnv = RuntimeEnv()


class ApplicationOptions(Settings):
    name: str
    import_path: Literal["serve.deploy:build_app", "serve.deploy:build_sealer"]
    route_prefix: str | None = "/"
    args: ServeArgs

    @model_validator(mode="after")
    def _prefix_fits(self) -> Self:
        wanted = BUILDERS[self.import_path]
        if self.route_prefix != wanted:
            raise ValueError(f"route_prefix of {self.import_path} is {self.route_prefix!r}: write {wanted or 'null'}")
        return self


class ServeFile(Settings):
    """The part of Ray's schema that this project uses."""

    proxy_location: Literal["HeadOnly", "EveryNode"] = "HeadOnly"
    http_options: HttpOptions = HttpOptions()
    controller_options: ControllerOptions = ControllerOptions()
    applications: list[ApplicationOptions] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not any(application.route_prefix for application in self.applications):
            raise ValueError("applications: none of them is serve.deploy:build_app, which answers")
        timeout = self.answerer.args.recipe.serve.request_timeout_s
        given, least = self.http_options.request_timeout_s, timeout + PROXY_GRACE_S
        if given is not None and given < least:
            raise ValueError(
                f"http_options.request_timeout_s = {given:g} would end requests in plain text, before the API does at "
                f"the recipe's serve.request_timeout_s = {timeout:g}: make it {least:g} or more"
            )
        return self

    @property
    def answerer(self) -> ApplicationOptions:
        return next(application for application in self.applications if application.route_prefix)


def load_serve_file(path: str | Path) -> ServeFile:
    """Raises :class:`ConfigError`, which names every field that is wrong or unknown."""
    try:
        return ServeFile.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        told = [f"{path}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join(told)) from None
