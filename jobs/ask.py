"""``agm ask``: one question to the endpoint."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from jobs import credentials, entry
from pipeline.home import submitter_home
from serve.client import Client, Reply


def command(
    question: Annotated[str, typer.Argument(help="in plain words, in quotes")],
    strategy: Annotated[
        Literal["adaptive", "copy", "context", "infer", "weights"] | None,
        typer.Option(help="weights: without the lesson memory; default: the recipe's"),
    ] = None,
    user: Annotated[str | None, typer.Option(help="the end user; his own corrections are read for him alone")] = None,
    url: entry.Url = entry.DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="the endpoint's whole reply")] = False,
) -> None:
    """Ask the endpoint; prints the answer, the strategy that gave it, and the lessons that it rests on.

    The key is AGM_KEY, else this home's own.

    Example: `agm ask 'What is the currency of Croatia?'`
    """
    with Client(url, credentials.key_for(submitter_home(), "ask")) as client:
        reply = client.ask(question, strategy=strategy, user=user)
    if as_json:
        entry.console.print_json(json.dumps(reply.raw))
    else:
        _show(reply)


def _show(reply: Reply) -> None:
    entry.console.print(reply.text, markup=False, highlight=False, soft_wrap=True)
    for line in explained(reply):
        entry.console.print(f"[dim]{escape(line)}[/dim]", highlight=False, soft_wrap=True)


def explained(reply: Reply) -> list[str]:
    """Why this answer: the strategies with their probabilities, the lessons with their weights and beliefs."""
    among = ", ".join(f"{name} {share:.2f}" for name, share in sorted(reply.probabilities.items()))
    took = f" (copied with probability {reply.copied:.2f})" if 0 < reply.copied < 1 else ""
    facts = (
        f"{reply.strategy}{took} of {among} · no lesson applies: {reply.null_weight:.2f} · "
        f"model version {reply.model_version} · {reply.milliseconds:.0f} ms · {reply.response_id}"
    )
    return [facts, *(_cited(lesson) for lesson in reply.lessons)]


def _cited(lesson: dict[str, Any]) -> str:
    weights = f"weight {lesson['weight']:.2f}, belief {lesson['belief']:.2f}"
    return f"  {lesson['lesson_id']} ({weights}): {lesson['question']} → {lesson['answer']}"


main = entry.main(command)

if __name__ == "__main__":
    main()
