"""The result schema through its file, its table and its plots."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from pipeline.evaluate.metrics import Interval, wilson
from pipeline.evaluate.plots import all_plots, bars, quality_plot
from pipeline.evaluate.result import Result
from pipeline.evaluate.tables import GROUPS, tables

PNG = b"\x89PNG"


@pytest.fixture
def result() -> Result:
    cells = {"10": {"reliability": wilson(10, 10), "locality": wilson(18, 20)}, "100": {"reliability": wilson(97, 100)}}
    without = {"10": {"reliability": wilson(0, 10)}}
    return Result(systems={"memory": cells, "uncorrected": without}, measures={"gate": 1})


def test_the_file_has_the_one_schema(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "result.json")
    written = json.loads((tmp_path / "result.json").read_text())
    assert list(written) == ["schema", "protocol", "measures", "systems"]
    assert written["schema"] == "agm-result-v1"
    assert set(written["systems"]["memory"]["10"]["locality"]) == {"value", "low", "high", "n"}
    assert Result.read(tmp_path / "result.json") == result


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": "something-else", "systems": {}}')
    with pytest.raises(ValidationError, match="schema"):
        Result.read(tmp_path / "other.json")


def test_tables_show_every_cell_mark_gaps_and_fit_100_columns(result: Result) -> None:
    without = Result(systems={**result.systems, "subject_index": {"100": {"reliability": wilson(0, 0)}}})
    text = shown(without)
    assert "0.970 [.915, .990]" in text
    assert "0.900 [.699, .972]" in text
    assert "–" in text
    assert "reliability 100" in text
    assert "subject_index (told)" in text


def test_a_whole_result_fits_100_columns() -> None:
    cell = {metric: wilson(990, 1000) for _, metrics, _ in GROUPS for metric in metrics}
    cell |= {
        "latency_p50_ms": Interval(17.3, 16, 19, 50),
        "memory_bytes": Interval(2e7, 2e7, 2e7, 3),
        "else": wilson(1, 2),
    }
    pair = {"p": 0.00012, "lost": 3, "gained": 120, "n": 1000}
    tested = {"10000": {"memory": {"replay_fine_tuning": {"reliability": pair, "mixed": pair}}}}
    order = {"10000": {"reliability": 0.99}}
    found = Result(
        systems={name: {"10000": cell} for name in ("memory", "replay_fine_tuning")},
        measures={"mcnemar": tested, "orders": {"memory": [order, {"10000": {"reliability": 0.98}}]},
                  "time_measured": {"label": "alone"}},
    )  # fmt: skip
    text = shown(found)
    assert "120 / 3, 0.0001" in text
    assert "0.010" in text
    assert "20 MB" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100


def shown(result: Result) -> str:
    screen = StringIO()
    console = Console(file=screen, width=100)
    for table in tables(result):
        console.print(table)
    return screen.getvalue()


def test_plots_are_drawn(result: Result, tmp_path: Path) -> None:
    quality_plot(result, tmp_path / "quality.png")
    bars({"kept": Interval(0.99, 0.97, 1.0, 200), "learned": wilson(64, 64)}, tmp_path / "bars.png", "After the cycle")
    assert (tmp_path / "quality.png").read_bytes().startswith(PNG)
    assert (tmp_path / "bars.png").read_bytes().startswith(PNG)
    assert all_plots(result, tmp_path / "out.json") == [tmp_path / "out.png"]
    curves = {"risk_coverage": {"memory": [[0.5, 0.0], [0.9, 0.1]], "uncorrected": []}}
    drawn = all_plots(result.model_copy(update={"measures": curves}), tmp_path / "out.json")
    assert [path.read_bytes()[:4] for path in drawn] == [PNG, PNG]


def test_nothing_to_plot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        quality_plot(Result(), tmp_path / "quality.png")
