"""Spaces, the objective over a sequence of cycles, ranking, and the front that is drawn."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.config import ConfigError, Recipe, ScalingSettings, load_recipe
from pipeline.data.lines import LessonLine
from pipeline.evaluate.metrics import Interval
from pipeline.tuning.plots import front, plot
from pipeline.tuning.search import Search, SearchError, Trial, _claim, concurrent_trials, ranking
from pipeline.tuning.sequence import AfterCycle, Probes, objective
from pipeline.tuning.space import Range, Space, default_space, load_space

LINES = tuple(LessonLine(question=f"Who rules {place}?", answer="x") for place in ("Oz", "Narnia", "Gondor"))


def searched(folder: Path, **changes: object) -> Search:
    given = {"log": (LINES[:1], LINES[1:2]), "check": (LINES[2:],), "space": default_space(Recipe())}
    return Search(name="mine", recipe=Recipe(), champion=folder, probes=Probes((), ()), **given | changes)  # type: ignore[arg-type]


def trial(name: str, *objectives: float, answer_ms: float = 10.0, **views: float) -> Trial:
    measures = [{"objective": value, "answer_ms": answer_ms, **views} for value in objectives]
    cycles = tuple(AfterCycle(n, found, (1.0,) * n, f"bundle-{n}") for n, found in enumerate(measures, 1))
    return Trial(name, {"memory.strategy": "copy"}, {"memory.strategy": "copy"}, cycles)


def test_a_space_file_says_values_ranges_and_methods(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "memory.strategy: [copy, weights]\n"
        "train.learning_rate: {times: [0.1, 10]}\n"
        "methods:\n"
        "  memory: {train.method: memory}\n"
        "  lora: {train.method: lora, train.learning_rate: 0.001}\n"
    )
    space, recipe = load_space(file, Recipe()), Recipe()
    assert space.size() == 2 * 3 * 2
    point = {"memory.strategy": "copy", "train.learning_rate": 2.0, "method": "lora"}
    changed = recipe.with_changes(space.changes(point, recipe))
    assert changed.train.method == "lora"
    assert changed.train.learning_rate == pytest.approx(0.002)
    slots = recipe.with_changes(space.changes(point | {"method": "memory"}, recipe))
    assert slots.train.learning_rate == pytest.approx(2 * recipe.train.learning_rate)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train.learning_rat: [1]", "learning_rat.*is not among.*learning_rate"),
        ("train.learning_rate: []", "give a list of values, or a range"),
        ("train.learning_rate: {log: [0, 1]}", "above 0 unless linear"),
        ("train.learning_rate: {times: [2, 1]}", "low < high"),
        ("train.learning_rate: {cubic: [1, 2]}", "times | log | linear"),
        ("memory.strategy: [copy, guess]", "memory.strategy = guess.*strategy = 'guess'"),
        ("train.penalty: [ewc]", "train.penalty = 'ewc' does not go with train.method = 'memory'"),
        ("train.method: [lora]\nmethods: {a: {train.method: memory}}", "is set by a method as well"),
        ("train.replay_lessons: [0, 8]", "train.replay_lessons changes nothing in a search"),
        ("methods: {a: {train.replay_choice: balanced}}", "train.replay_choice changes nothing"),
        ("methods: [a]", "expected names, each with the fields"),
        ("- 1", "expected a mapping of dotted fields"),
        ("a: [", "not YAML"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_with_the_field(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_space(file, Recipe())


def test_the_example_and_the_default_space_fit_every_recipe_that_ships(root: Path) -> None:
    for name in ("fast", "laptop", "cluster", "pretrain"):
        file = root / "examples" / f"{name}.yaml"
        default_space(load_recipe(file)).check(load_recipe(file))
    assert "memory" in load_space(root / "examples" / "tune" / "space.yaml", Recipe()).methods


def test_a_grid_takes_both_ends_of_a_range_and_its_middle() -> None:
    assert Range("log", 0.01, 1.0).points() == pytest.approx([0.01, 0.1, 1.0])
    assert Range("linear", 0.0, 1.0).points() == [0.0, 0.5, 1.0]
    space = Space({"train.merge": Range("linear", 0.5, 1.0), "memory.strategy": ("copy", "weights")})
    assert space.size() == 6
    assert {name: len(given["grid_search"]) for name, given in space.grid().items()} == {
        "train.merge": 3,
        "memory.strategy": 2,
    }


def figures(**values: float) -> dict[str, Interval]:
    return {name: Interval(value, 0, 1, 10) for name, value in values.items()}


def test_the_objective_is_the_formula_in_its_docstring() -> None:
    on, off = figures(reliability=1.0, generality=0.8, locality=0.6), figures(reliability=0.5, retention=0.9)
    found = objective(on, off, {"learned": 0.7, "forgetting": 0.2})
    assert found["objective"] == pytest.approx((0.8 + 0.7) / 2)
    assert found["learned"] == pytest.approx((1.0 + 0.8 + 0.7) / 3)
    assert found["kept"] == pytest.approx((0.6 + 0.9 + 0.8) / 3)
    without = objective(figures(reliability=1.0), off, {"learned": 0.7, "forgetting": -0.5})
    assert without["objective"] == pytest.approx((1.0 + 0.7) / 2)
    assert without["kept"] == pytest.approx((0.9 + 1.0) / 2)  # what improved afterwards makes up for nothing


def test_stopped_trials_rank_behind_whole_ones_and_slow_ones_behind_fast_ones(tmp_path: Path) -> None:
    whole, better, stopped = trial("whole", 0.5, 0.6), trial("better", 0.5, 0.7), trial("stopped", 0.9)
    slow = trial("slow", 0.9, 0.9, answer_ms=80.0)
    wanted = searched(tmp_path, max_answer_ms=50.0)
    ranked = ranking([stopped, slow, whole, better], wanted)
    assert [each.id for each in ranked] == ["better", "whole", "slow", "stopped"]
    assert ranking([whole, slow], searched(tmp_path))[0].id == "slow"


def test_the_best_bundle_is_not_always_the_last() -> None:
    assert trial("a", 0.8, 0.7).best_cycle.cycle == 1
    assert trial("b", 0.7, 0.7).best_cycle.cycle == 2


def test_the_front_is_what_no_other_trial_beats_in_both() -> None:
    points = [(0.1, 0.5), (0.0, 0.3), (0.2, 0.4), (0.3, 0.9), (0.1, 0.4), (0.3, 0.2)]
    assert front(points) == [(0.0, 0.3), (0.1, 0.5), (0.3, 0.9)]
    assert front([]) == []


def test_a_plot_is_drawn_with_whole_and_stopped_trials(tmp_path: Path) -> None:
    trials = [trial("a", 0.5, 0.6, learned=0.7, kept=0.9), trial("b", 0.2, learned=0.1, kept=0.4)]
    plot(trials, 2, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_trials_never_take_the_room_that_their_workers_need() -> None:
    two_cores = {"CPU": 2.0}
    assert concurrent_trials(ScalingSettings(), two_cores) == 1
    assert concurrent_trials(ScalingSettings(workers=1, cpus_per_worker=0.3), two_cores) == 5
    assert concurrent_trials(ScalingSettings(workers=4, cpus_per_worker=1), two_cores) == 1
    gpus = ScalingSettings(workers=2, use_gpu=True, cpus_per_worker=1)
    assert concurrent_trials(gpus, {"CPU": 64.0, "GPU": 8.0}) == 4


def test_another_search_cannot_take_the_name(tmp_path: Path) -> None:
    _claim(tmp_path / "mine", searched(tmp_path))
    _claim(tmp_path / "mine", searched(tmp_path))
    with pytest.raises(SearchError, match="other lessons, recipe or options"):
        _claim(tmp_path / "mine", searched(tmp_path, check=()))


def test_what_was_measured_is_read_back_as_it_was() -> None:
    after = AfterCycle(2, {"objective": 1 / 3, "loss": math.pi}, (0.1, 0.2), "somewhere")
    assert AfterCycle.read(after.saved()) == after
