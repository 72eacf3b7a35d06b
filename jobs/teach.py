"""``agm teach``: lessons to the endpoint, one or a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

from jobs import credentials, entry
from pipeline.data.lines import LessonLine, read_lines
from pipeline.feedback.exchange import line_id
from pipeline.home import submitter_home
from serve.client import Client


def command(
    question: Annotated[str | None, typer.Argument(help="in quotes")] = None,
    answer: Annotated[str | None, typer.Argument(help="the right one, in quotes")] = None,
    previous: Annotated[str | None, typer.Option(help="the outdated answer, also of a lesson in other words")] = None,
    file: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="lesson lines (JSONL)")] = None,
    url: entry.Url = entry.DEFAULT_URL,
) -> None:
    """Teach the endpoint a lesson: the next answer is already right. A line of a file is taught once, however often
    the file is sent.

    The key is AGM_KEY, else this home's own.

    A lesson that answered the question in other words so far is named; with --previous and its answer it is replaced.

    Example: `agm teach 'What is the currency of Croatia?' 'the euro'`, or `agm teach --file lessons.jsonl`
    """
    lines = _lines(question, answer, previous, file)
    with Client(url, credentials.key_for(submitter_home(), "teach")) as client:
        receipts = [
            client.teach(line, feedback_id=line_id(line) if file else None)
            for line in track(lines, "teaching", console=entry.console, transient=True, disable=file is None)
        ]
    new = sum(not receipt["duplicate"] for receipt in receipts)
    known = f", {len(lines) - new} known already" if new < len(lines) else ""
    last = f" ({receipts[-1]['lesson_id']})" if len(receipts) == 1 else ""
    entry.console.print(f"{new} lesson(s) taught{known}{last}", highlight=False)
    for receipt in receipts:
        if (other := receipt["overlap"]) and not receipt["duplicate"]:
            entry.console.print(_told(other), highlight=False)


def _told(other: dict[str, Any]) -> str:
    if other["replaced"]:
        return f"replaced: {other['question']!r} was answered {other['answer']!r}"
    return (
        f"still there: {other['question']!r} with the answer {other['answer']!r}; if it is the same fact, "
        f"agm lessons retract {other['lesson_id']}"
    )


def _lines(question: str | None, answer: str | None, previous: str | None, file: Path | None) -> list[LessonLine]:
    if file and question is None and previous is None:
        return read_lines(file, LessonLine)
    if question and answer and file is None:
        return [LessonLine(question=question, answer=answer, previous=previous)]
    raise entry.UserError("give a question and its answer, or --file with lesson lines")


main = entry.main(command)

if __name__ == "__main__":
    main()
