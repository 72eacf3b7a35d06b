"""Results that training needs in every epoch and that never change, computed once and kept as far as memory goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

BUDGET_BYTES = 2 << 30


class Kept(Generic[Thing, Result]):
    """``compute`` over ``things``, in fixed groups.

    A result depends in its last bits on what else was in the batch that computed it. So results that are kept are
    computed in groups of their own, whenever the first of a group is asked for: a resumed run, which asks in another
    order, gets the same bits. ``tokens`` says how many of them a thing has (those of one group have about as many),
    ``token_bytes`` how large its result is for each.
    """

    group_size = 16

    def __init__(
        self,
        things: Iterable[Thing],
        compute: Callable[[Sequence[Thing]], Sequence[Result]],
        tokens: Callable[[Thing], int],
        token_bytes: int,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        ordered = sorted(dict.fromkeys(things), key=tokens)
        self._groups = [ordered[i : i + self.group_size] for i in range(0, len(ordered), self.group_size)]
        self._group = {thing: number for number, group in enumerate(self._groups) for thing in group}
        self._compute = compute
        self._kept: dict[Thing, Result] = {}
        self._lasting = 0  # groups that are kept
        for group in self._groups:
            budget_bytes -= token_bytes * sum(map(tokens, group))
            if budget_bytes < 0:
                break
            self._lasting += 1

    def group(self, thing: Thing) -> int:
        """The number of the group that it is computed in."""
        return self._group[thing]

    def __call__(self, things: Sequence[Thing]) -> list[Result]:
        """Those that are not kept are computed in one batch."""
        missing = [thing for thing in dict.fromkeys(things) if thing not in self._kept]
        for number in dict.fromkeys(self._group[t] for t in missing if self._group[t] < self._lasting):
            self._kept |= zip(self._groups[number], self._compute(self._groups[number]), strict=True)
        others = [thing for thing in missing if thing not in self._kept]
        fresh = dict(zip(others, self._compute(others), strict=True)) if others else {}
        return [self._kept[thing] if thing in self._kept else fresh[thing] for thing in things]
