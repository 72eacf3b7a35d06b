"""``agm serve``: the endpoint, until Ctrl-C."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from jobs import credentials, entry, local
from jobs.initialise import initialise
from jobs.starting import starting_point
from pipeline.config import load_recipe
from pipeline.home import submitter_home


def command(
    recipe: entry.RecipePath = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one; default: the recipe's")] = None,
    host: Annotated[str | None, typer.Option(help="default: the recipe's, 127.0.0.1")] = None,
    check: Annotated[Path | None, typer.Option(help="only read a serve.yaml, strictly, and say what is wrong")] = None,
) -> None:
    """Serve the champion over HTTP until Ctrl-C: OpenAI's API, feedback, lessons, and a page at /.

    The first start makes the default answerer champion, and one key a role in AGM_HOME/credentials.json.

    Example: `agm serve --recipe examples/laptop.yaml --port 8000`
    """
    if check is not None:
        _check(check)
        return
    home = submitter_home()
    settings = load_recipe(recipe).with_changes({"serve.host": host} if host else {})
    from serve import deploy  # after the recipe was read: torch takes seconds to import

    with local.connect(home, settings):
        with entry.console.status("starting the endpoint") as status:
            initialise(home, settings)
            if recipe is not None:
                starting_point(home, recipe)  # or it says that the champion is made of another model than the recipe's
            endpoint = deploy.start(home, settings, port=port, say=status.update)
        _announce(endpoint.url, endpoint.model_version, str(credentials.path(home)))
        try:
            threading.Event().wait()
        finally:
            deploy.stop()


def _check(path: Path) -> None:
    from serve.serve_yaml import load_serve_file

    found = load_serve_file(path)
    replicas = found.answerer.args.recipe.serve.replicas
    entry.console.print(f"{path} is valid: {replicas} replica(s); deploy it with: serve deploy {path}", soft_wrap=True)


def _announce(url: str, version: int, keys: str) -> None:
    entry.console.print(
        f"serving model version {version} at [bold]{url}[/bold] (keys: {keys}); Ctrl-C stops", soft_wrap=True
    )
    entry.console.print(f"try:  agm ask 'What is the capital of France?' --url {url}", markup=False, soft_wrap=True)


main = entry.main(command)

if __name__ == "__main__":
    main()
