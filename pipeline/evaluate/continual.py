"""Learning over a sequence of cycles: the matrix R and what is read off it.

R[i][j] is the share right on the lessons of cycle j after cycle i has been trained, i and j from 0 to T - 1 (the
papers count from 1). Below the diagonal lies what was kept, on it what was learned, above it what came for nothing.
Not every cell needs a value: ``None`` where nothing was measured; a figure that needs such a cell is an error.

Sources: Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory for Continual Learning" (arXiv:1706.08840), section 2;
Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning" (arXiv:1801.10112), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

Matrix = Sequence[Sequence[float | None]]


def learned(matrix: Matrix) -> float:
    """Mean of R[j][j]: right on a cycle's lessons right after it."""
    return fmean(_cell(matrix, j, j) for j in range(len(matrix)))


def average_accuracy(matrix: Matrix) -> float:
    """ACC = 1/T sum_j R[T-1][j] (Lopez-Paz & Ranzato 2017, eq. 2): over all cycles' lessons after the last one."""
    last = len(matrix) - 1
    return fmean(_cell(matrix, last, j) for j in range(last + 1))


def backward_transfer(matrix: Matrix) -> float:
    """BWT = 1/(T-1) sum_{j < T-1} (R[T-1][j] - R[j][j]) (ibid., eq. 3): negative where later cycles cost knowledge.

    0 with a single cycle: nothing came later.
    """
    last = len(matrix) - 1
    return _mean([_cell(matrix, last, j) - _cell(matrix, j, j) for j in range(last)])


def forward_transfer(matrix: Matrix, before: Sequence[float]) -> float:
    """FWT = 1/(T-1) sum_{j > 0} (R[j-1][j] - b[j]) (ibid., eq. 4).

    b[j] = ``before[j]`` is the share right on cycle j before any training. 0 with a single cycle.
    """
    return _mean([_cell(matrix, j - 1, j) - before[j] for j in range(1, len(matrix))])


def forgetting(matrix: Matrix) -> float:
    """F = 1/(T-1) sum_{j < T-1} (max_{l in j..T-2} R[l][j] - R[T-1][j]) (Chaudhry et al. 2018, eq. 3).

    The distance from the best that a cycle's lessons ever stood at; unlike BWT it also counts what was first gained
    and then lost. The paper takes the maximum over all earlier cycles; before cycle j, its lessons were not learned.
    0 with a single cycle.
    """
    last = len(matrix) - 1
    return _mean([max(_cell(matrix, i, j) for i in range(j, last)) - _cell(matrix, last, j) for j in range(last)])


def summary(matrix: Matrix, before: Sequence[float] | None = None) -> dict[str, float]:
    """Every figure that the matrix holds; forward transfer where ``before`` is known."""
    figures = {
        "learned": learned(matrix),
        "average_accuracy": average_accuracy(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forgetting": forgetting(matrix),
    }
    return figures if before is None else {**figures, "forward_transfer": forward_transfer(matrix, before)}


def measured(matrix: Matrix) -> list[list[float | None]]:
    """The rows and columns of the cycles that were asked about after the last one and right after themselves."""
    last = len(matrix) - 1
    chosen = [j for j in range(last + 1) if _known(matrix, last, j) and _known(matrix, j, j)]
    return [[matrix[i][j] if _known(matrix, i, j) else None for j in chosen] for i in chosen]


def heat_map(matrices: dict[str, Matrix], path: Path, cycles: Sequence[int] | None = None) -> None:
    """One panel per matrix: cycles trained downwards, cycles asked about to the right; every cell with its value.

    ``cycles`` are their numbers, from 1 on where they are not given.
    """
    from matplotlib.figure import Figure

    size = max(len(matrix) for matrix in matrices.values())
    side = 0.8 + 0.36 * size
    columns = min(3, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(max(2.6, side) * columns, (max(2.6, side) + 0.3) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for panel, (name, matrix) in zip(panels, matrices.items(), strict=False):
        width = max(len(row) for row in matrix)
        values = [[float("nan") if v is None else v for v in (*row, *[None] * (width - len(row)))] for row in matrix]
        panel.imshow(values, vmin=0, vmax=1, cmap="Blues")
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                if value is not None:
                    panel.text(
                        j, i, f"{value:.2f}", ha="center", va="center", fontsize=6,
                        color="white" if value > 0.6 else "black",
                    )  # fmt: skip
        panel.set_title(name, fontsize=9)
        panel.set(xlabel="asked about cycle", ylabel="after cycle")
        numbers = list(cycles or range(1, max(width, len(matrix)) + 1))
        panel.set_xticks(range(width), numbers[:width])
        panel.set_yticks(range(len(matrix)), numbers[: len(matrix)])
    for panel in panels[len(matrices) :]:
        panel.set_axis_off()
    figure.savefig(path, dpi=120)


def _cell(matrix: Matrix, i: int, j: int) -> float:
    value = matrix[i][j] if j < len(matrix[i]) else None
    if value is None:
        raise ValueError(f"R[{i}][{j}] was not measured")
    return value


def _known(matrix: Matrix, i: int, j: int) -> bool:
    return j < len(matrix[i]) and matrix[i][j] is not None


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
