"""The one result schema: every tool that measures writes it, every report reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from pipeline.evaluate.metrics import Interval
from pipeline.evaluate.protocol import PROTOCOL

SCHEMA = "agm-result-v1"


class Result(BaseModel):
    """``systems`` is {system: {length: {metric: figure}}}; lengths are written as strings because JSON keys are."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    format: Literal["agm-result-v1"] = Field("agm-result-v1", alias="schema")  # "schema" is taken by pydantic
    protocol: str = PROTOCOL
    measures: dict[str, Any] = Field(default_factory=dict)
    systems: dict[str, dict[str, dict[str, Interval]]] = Field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))

    def metrics(self) -> list[str]:
        """Every metric that some system has, in the order of first appearance."""
        cells = (cell for lengths in self.systems.values() for cell in lengths.values())
        return list(dict.fromkeys(metric for cell in cells for metric in cell))

    def last(self, system: str) -> tuple[str, dict[str, Interval]]:
        """The longest length of ``system`` and its figures."""
        return max(self.systems[system].items(), key=lambda item: int(item[0]))

    def spread(self, system: str, length: str, metric: str) -> float | None:
        """Largest minus smallest share over the orders in which the lessons were taught; ``None`` for one order."""
        orders = self.measures.get("orders", {}).get(system, [])
        shares = [order[length][metric] for order in orders if metric in order.get(length, {})]
        return max(shares) - min(shares) if len(shares) > 1 else None
