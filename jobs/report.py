"""``agm report``: every figure of a demo, recomputed from its transcript: ``report.html``, ``report.json``, a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from jobs import entry
from pipeline.evaluate import transcript
from pipeline.evaluate.protocol import PROTOCOL
from pipeline.evaluate.transcript import Record

SCHEMA = "agm-demo-1"


@dataclass(frozen=True)
class Goal:
    """What a figure is called and what it has to reach; ``least`` and ``most`` bound its value."""

    title: str
    least: float | None = None
    most: float | None = None

    def met(self, value: float | None) -> bool | None:
        """``None`` where the figure has no goal."""
        if self.least is None and self.most is None:
            return None
        if value is None:
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.least is not None:
            return f"≥ {self.least:g}"
        return f"≤ {self.most:g}" if self.most is not None else "reported"


GOALS = {
    "corrected": Goal("corrected question, right after", least=0.99),
    "paraphrase": Goal("its paraphrase, never posted", least=0.90),
    "neighbour": Goal("neighbouring question unchanged", least=0.97),
    "weights_learned": Goal("learned by the weights (memory off)", least=0.90),
    "weights_paraphrase": Goal("... in a withheld phrasing"),
    "retention_kept": Goal("old knowledge kept", least=0.98),
    "requests_during_swap": Goal("requests during cycle and swap", least=20),
    "failed_requests": Goal("... of them failed", most=0),
    "correction_to_answer_p95_ms": Goal("correction to corrected answer, p95 ms", most=300),
}


def report(records: Sequence[Record]) -> dict[str, Any]:
    """``report.json``: ``measures`` has the figures, the rest is how to read them."""
    measures = transcript.measures(records)
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "measures": measures,
        "goals_met": {name: goal.met(value_of(measures[name])) for name, goal in GOALS.items()},
        "answers": transcript.answers(records),
        "cited": transcript.cited(records),
        "records": len(records),
    }


def write(records: Sequence[Record], out: Path) -> dict[str, Any]:
    """Both files in ``out``; returns what ``report.json`` holds."""
    from jobs import report_page

    content = report(records)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.html").write_text(report_page.render(content, records), encoding="utf-8")
    return content


def value_of(figure: Any) -> float | None:
    return figure["value"] if isinstance(figure, dict) else figure


def shown(figure: Any) -> str:
    """A figure for people: shares with interval and n, counts and milliseconds as they are."""
    if figure is None:
        return "none"
    if isinstance(figure, dict):
        return f"{figure['value']:.3f}  [{figure['low']:.3f}, {figure['high']:.3f}]  n={figure['n']}"
    return f"{figure:g}" if isinstance(figure, int) else f"{figure:.0f}"


def show(content: dict[str, Any], console: Console) -> None:
    """The tables in the terminal."""
    console.print(_goals_table(content))
    console.print(_answers_table(content["answers"]))
    gate = content["measures"]["gate"]
    if gate:
        console.print(f"gate: [bold]{'promoted' if gate.get('promoted') else 'refused'}[/bold]")
        for reason in gate.get("reasons", ()):
            console.print(f"  - {reason}", markup=False, highlight=False)


def _goals_table(content: dict[str, Any]) -> Table:
    table = Table("measure", "value  [95 % interval]", "goal", "", title="What the demo measured")
    marks = {True: "[green]met[/green]", False: "[red]missed[/red]", None: ""}
    for name, goal in GOALS.items():
        table.add_row(goal.title, shown(content["measures"][name]), str(goal), marks[content["goals_met"][name]])
    return table


def _answers_table(answers: dict[str, Any]) -> Table:
    table = Table("memory", "asked", "before", "after", title="The same questions, share right")
    for memory in ("on", "off"):
        for kind in ("question", "paraphrase"):
            cells = [shown(answers[phase][memory][kind]) for phase in ("before", "after")]
            table.add_row(memory if memory == "on" else "off (weights only)", kind, *cells)
    return table


def command(
    transcript_path: Annotated[
        Path, typer.Option("--from", exists=True, dir_okay=False, help="the transcript.jsonl of a demo")
    ],
    out: Annotated[Path | None, typer.Option(help="folder for the report; default: beside the transcript")] = None,
) -> None:
    """Recompute every figure of a demo from its transcript and write report.html and report.json.

    Example: `agm report --from .agm/transcript.jsonl --out /tmp/report`
    """
    folder = out or transcript_path.resolve().parent
    content = write(transcript.read_transcript(transcript_path), folder)
    show(content, entry.console)
    entry.console.print(f"written: {folder / 'report.html'}, {folder / 'report.json'}", soft_wrap=True)


main = entry.main(command)

if __name__ == "__main__":
    main()
