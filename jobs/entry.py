"""How a job starts: one function is ``agm VERB``, ``python -m jobs.VERB`` and the entrypoint of ``agm submit VERB``.

A job module defines ``command(...)`` with typer's annotations and ends with::

    main = entry.main(command)

    if __name__ == "__main__":
        main()
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

RecipePath = Annotated[
    Path | None,
    typer.Option("--recipe", exists=True, dir_okay=False, help="a YAML file like examples/laptop.yaml, the default"),
]

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(envvar="AGM_URL", help="the endpoint")]

OUR_PACKAGES = ("pipeline", "serve", "jobs")
LINE_EVERY_S = 30.0
MISTAKE = 2  # the exit code of whoever has to change something and try again

console = Console()


class UserError(ValueError):
    """The person at the terminal has to change something; the message says what."""


class Main(Protocol):
    def __call__(self, argv: list[str] | None = None) -> None: ...


def main(command: Callable[..., Any]) -> Main:
    """``main(argv)`` of a job module; ``argv`` stands without the program's name and defaults to the command line."""

    def run_as_program(argv: list[str] | None = None) -> None:
        run(as_click(command), argv, program=f"python -m {command.__module__}")

    return run_as_program


def as_click(command: Callable[..., Any], name: str | None = None, **settings: Any) -> Any:
    """The typer command of one function."""
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(name, **{**getattr(command, "typer_settings", {}), **settings})(command)
    return typer.main.get_command(app)


def run(command: Any, argv: list[str] | None, *, program: str) -> None:
    """Run a typer command. A user's mistake ends in one red line and exit code 2, not in a traceback."""
    try:
        command.main(args=sys.argv[1:] if argv is None else argv, prog_name=program)
    except SystemExit as end:
        if end.code not in (0, None):
            raise
    except Exception as error:  # the named border: what is not ours is raised again
        message = mistake(error)
        if message is None:
            raise
        Console(stderr=True, soft_wrap=True).print(Text(message, style="red"))
        sys.exit(MISTAKE)


def bar() -> Progress:
    """Progress of long work: what is being done, how far it is, how long it has taken, how long it may take yet."""
    kind = Progress if console.is_terminal else _Lines
    return kind(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:g}/{task.total:g}"),
        TimeElapsedColumn(), TimeRemainingColumn(elapsed_when_finished=False), console=console, transient=False,
    )  # fmt: skip


class _Lines(Progress):
    """Where nothing draws bars, as in a cluster job's log: a line for what is new, twice a minute at most."""

    _told = float("-inf")

    def update(self, task_id: TaskID, **changed: Any) -> None:
        super().update(task_id, **changed)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        task, now = next(task for task in self.tasks if task.id == task_id), self.get_time()
        if now - self._told < LINE_EVERY_S or task.total is None:
            return
        self._told = now
        took = timedelta(seconds=round(task.elapsed or 0))
        self.console.print(f"{task.description}: {task.completed:g}/{task.total:g}, {took}", highlight=False)


def mistake(error: BaseException | None) -> str | None:
    """The message for the user, where ``error`` (or what caused it on a worker) is one of this project's classes.

    This project's exceptions are written for the reader: each names what is wrong and how to mend it.
    """
    while error is not None:
        if type(error).__module__.split(".")[0] in (*OUR_PACKAGES, "__main__"):
            return str(error) or type(error).__name__
        error = error.__cause__
    return None
