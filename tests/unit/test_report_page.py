"""The report draws the way of one correction: to its lesson, the answers that cite it, and the version after it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from jobs.report_page import _lineage, _svg, _way
from pipeline.evaluate.transcript import Correction, Cycle, Request

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def asked(**fields: Any) -> Request:
    told = {"time": NOW, "phase": "adjust", "lesson": "one", "expected": ("x",), "raw": "x", "status": 200}
    return Request(**{**told, **fields})


def test_the_way_of_the_first_cited_correction() -> None:
    records = [
        Correction(phase="correction", lesson="zero", status=200),
        Correction(phase="correction", lesson="one", status=200),
        asked(lesson_id="les_1", lessons=("les_1",)),
        asked(lesson_id="les_1", lessons=("les_2",)),
        Cycle(time=NOW, phase="cycle", event="start"),
        asked(phase="after", memory="off", model_version=2),
    ]
    way = _way(records)
    assert way == ["correction", "lesson\nles_1", "1 answers\ncite it", "cycle", "version 2\n1 of 1 by weights"]
    drawn = _svg(lambda axes: _lineage(axes, way))
    assert all(part in drawn for part in ("correction", "les_1", "cycle", "version 2"))


def test_without_a_cited_correction_there_is_nothing_to_draw() -> None:
    assert _way([Correction(phase="correction", lesson="one", status=200), asked()]) == []
