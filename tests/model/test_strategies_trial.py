"""The choice of strategies that ships, with the real model on lines that nothing was fitted on."""

from __future__ import annotations

import pytest

from pipeline.config import Recipe
from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, read_lines
from pipeline.evaluate.strategies_report import Sitting, compare_strategies, mixed_probes
from pipeline.evaluate.systems import make_bench
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle


@pytest.mark.trial
@pytest.mark.timeout(900)
def test_adaptive_loses_nothing_to_the_best_single_strategy() -> None:
    recipe = Recipe()
    lines = [
        line
        for line in read_lines(example("world_changes/lessons.jsonl"), LessonLine)
        if (line.model_extra or {})["part"] == "report"
    ]
    bench = make_bench(recipe, Answerer.load(Bundle.initial(recipe)))
    found = compare_strategies(Sitting(lines, mixed_probes(lines, 12), bench))
    adaptive = found.systems["adaptive"][str(len(lines))]
    assert adaptive["question"].value == 1.0
    assert adaptive["neighbour"].value >= found.systems["copy"][str(len(lines))]["neighbour"].value
    assert found.measures["adaptive_gained"] >= found.measures["adaptive_lost"]
