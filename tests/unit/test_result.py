"""The result schema through its file, its table and its plots."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from pipeline.evaluate.metrics import Interval, wilson
from pipeline.evaluate.plots import bars, quality_plot
from pipeline.evaluate.result import Result, table

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


def test_the_table_shows_every_cell_and_marks_gaps(result: Result) -> None:
    screen = StringIO()
    Console(file=screen, width=120).print(table(result))
    text = screen.getvalue()
    assert "0.900 (0.699 to 0.972)" in text
    assert text.count("–") == 2
    assert text.count("memory") == 2


def test_plots_are_drawn(result: Result, tmp_path: Path) -> None:
    quality_plot(result, tmp_path / "quality.png")
    bars({"kept": Interval(0.99, 0.97, 1.0, 200), "learned": wilson(64, 64)}, tmp_path / "bars.png", "After the cycle")
    assert (tmp_path / "quality.png").read_bytes().startswith(PNG)
    assert (tmp_path / "bars.png").read_bytes().startswith(PNG)


def test_nothing_to_plot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        quality_plot(Result(), tmp_path / "quality.png")
