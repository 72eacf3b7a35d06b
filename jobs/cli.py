"""``agm``: one command line over the jobs. A verb's module is imported when it is used, so ``agm --help`` is quick."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from jobs import entry

# verb: what it does. The module is jobs.<verb>, its function command(...).
VERBS = {
    "demo": "the whole loop on real facts: ask, correct, update, compare",
    "serve": "serve the champion over HTTP until Ctrl-C",
    "ask": "ask the endpoint a question; prints answer, strategy and the lessons used",
    "teach": "teach the endpoint a lesson, or a file of them",
    "lessons": "list, show, explain, retract, expire or reinforce what the endpoint was taught",
    "update": "one cycle: train a challenger on the feedback, and promote or refuse it",
    "tune": "search memory strategy and learning rate; writes a recipe for update",
    "evaluate": "reliability, generality, locality and retention on your own lessons",
    "strategies": "which memory strategy answers what; fits the choice between them",
    "pretrain": "train a decoder on text, or the router on lessons of your own",
    "recall": "train a decoder from nothing to recall from memory layers",
    "submit": "run a verb on the cluster: agm submit update ...",
    "status": "champion, events and the last verdicts",
    "report": "recompute every figure of a demo from its transcript",
    "promote": "make a registered version the champion",
    "rollback": "return to the champion before this one; lessons stay",
    "canary": "answer a share of the sessions with another version",
    "erase": "erase what somebody said, a lesson, or a subject, everywhere",
    "compact": "merge, expire and vacuum the Parquet table of feedback",
    "lineage": "what stands behind an answer, and what a feedback touched",
    "feedback": "import and export feedback, rotate the master key",
    "keys": "list the endpoint's keys, or create one",
}


def command_of(verb: str) -> Any:
    """The typer command of a verb, with its module imported."""
    return entry.as_click(importlib.import_module(f"jobs.{verb}").command, verb)


class Verbs(TyperGroup):
    """Lists the verbs from the table above and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [verb for verb in VERBS if importlib.util.find_spec(f"jobs.{verb}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        return TyperCommand(cmd_name, help=VERBS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        verb, command, rest = super().resolve_command(ctx, args)
        return verb, command and command_of(str(verb)), rest


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="An answering service that you correct once and that stays corrected.\n\n"
    "State lives in AGM_HOME (default ./.agm). Each verb has its own --help with an example.",
)


@app.callback()
def _group() -> None:
    """Keeps ``app`` a group although its verbs are not registered one by one."""


def main(argv: list[str] | None = None) -> None:
    entry.run(typer.main.get_command(app), argv, program="agm")


if __name__ == "__main__":
    main()
