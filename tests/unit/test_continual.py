"""The figures of learning over cycles, on numbers worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluate import continual
from pipeline.evaluate.compare import Examination, Outcome
from pipeline.feedback.manifest import Manifest
from pipeline.train import history

# Three cycles. Cycle 1 is learned at .9, helped to 1.0 by cycle 2 and hurt to .7 by cycle 3.
MATRIX = [
    [0.9, 0.2, 0.0],
    [1.0, 0.8, 0.3],
    [0.7, 0.6, 1.0],
]
BEFORE = [0.1, 0.1, 0.05]


def test_worked_by_hand() -> None:
    assert continual.learned(MATRIX) == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert continual.average_accuracy(MATRIX) == pytest.approx((0.7 + 0.6 + 1.0) / 3)
    assert continual.backward_transfer(MATRIX) == pytest.approx(((0.7 - 0.9) + (0.6 - 0.8)) / 2)
    assert continual.forgetting(MATRIX) == pytest.approx(((1.0 - 0.7) + (0.8 - 0.6)) / 2)
    assert continual.forward_transfer(MATRIX, BEFORE) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.05)) / 2)


def test_what_is_above_the_diagonal_is_needed_for_forward_transfer_alone() -> None:
    lower = [[0.9], [1.0, 0.8], [0.7, 0.6, 1.0]]
    figures = continual.summary(lower)
    assert figures == {name: value for name, value in continual.summary(MATRIX, BEFORE).items() if name in figures}
    assert "forward_transfer" not in figures
    with pytest.raises(ValueError, match=r"R\[0\]\[1\] was not measured"):
        continual.forward_transfer(lower, BEFORE)


def test_a_missing_cell_is_an_error_and_no_zero() -> None:
    with pytest.raises(ValueError, match=r"R\[2\]\[0\] was not measured"):
        continual.average_accuracy([[0.9], [1.0, 0.8], [None, 0.6, 1.0]])


def test_a_single_cycle_has_nothing_to_forget() -> None:
    figures = continual.summary([[0.5]], [0.0])
    assert figures == {
        "learned": 0.5, "average_accuracy": 0.5, "backward_transfer": 0.0, "forgetting": 0.0, "forward_transfer": 0.0,
    }  # fmt: skip


def test_the_heat_map_is_drawn(tmp_path: Path) -> None:
    from matplotlib.image import imread

    continual.heat_map({"memory": MATRIX, "naive": [[0.9], [None, 0.8], [0.7, 0.6, 1.0]]}, tmp_path / "r.png")
    assert imread(tmp_path / "r.png").std() > 0.05


# of a home's own cycles


def outcome(new: list[bool], earlier: list[bool]) -> Outcome:
    return Outcome((), (), tuple(new), (), tuple(earlier))


def test_every_cycle_adds_its_row(tmp_path: Path) -> None:
    """Cycle 2 had nothing to learn and asked nobody. Cycle 4 asks 3 lessons of cycle 1 and 2 of cycle 3."""
    for number, new, earlier, cycles in [
        (1, [True, True, True, False], [], ()),
        (3, [True, True], [True, False], (1, 1)),
        (4, [True], [True, False, True, False, False], (1, 1, 3, 3, 1)),
    ]:
        folder = tmp_path / f"{number:06d}"
        folder.mkdir()
        exam = Examination((), (), earlier=(("q", "a"),) * len(cycles), earlier_cycles=cycles)
        history.record_row(folder, number, exam, outcome(new, earlier))
    found = history.retained(tmp_path)
    assert found.cycles == (1, 3, 4)
    assert found.matrix == ((0.75, None, None), (0.5, 1.0, None), (pytest.approx(1 / 3), 0.5, 1.0))
    figures = found.figures()
    assert figures["backward_transfer"] == pytest.approx(((1 / 3 - 0.75) + (0.5 - 1.0)) / 2)
    assert figures["forgetting"] == pytest.approx(((0.75 - 1 / 3) + (1.0 - 0.5)) / 2)
    history.draw(found, tmp_path / history.HEAT_MAP)
    assert (tmp_path / history.HEAT_MAP).stat().st_size > 1000


def test_a_cycle_that_the_last_one_did_not_ask_about_is_left_out(tmp_path: Path) -> None:
    found = history.Retained((1, 2, 3), ((0.8, None, None), (0.7, 0.9, None), (None, 0.6, 1.0)))
    assert found.figures()["backward_transfer"] == pytest.approx(0.6 - 0.9)


def test_a_lesson_belongs_to_the_last_cycle_that_trained_it() -> None:
    def manifest(cycle: int, *lessons: str) -> Manifest:
        return Manifest(
            cycle=cycle, from_seq=0, to_seq=1, table_version=0, rows=1, lessons=lessons, dropped=(), seed=0, withheld={}
        )

    assert history.trained_in([manifest(1, "a", "b"), manifest(2, "b", "c")]) == {"a": 1, "b": 2, "c": 2}
