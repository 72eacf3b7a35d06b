"""The gate: a challenger replaces the champion when it is shown not to be worse, set by set.

Every check is a test of non-inferiority: the lower bound of the paired difference (challenger - champion) must lie
above minus the margin. Retention has a hard floor besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from pipeline.config import GateSettings
from pipeline.evaluate.metrics import paired_difference
from pipeline.evaluate.retention import kept
from pipeline.files import write_whole


@dataclass(frozen=True)
class Pairs:
    """Outcomes of champion and challenger on the same items, in the same order."""

    champion: tuple[bool, ...] = ()
    challenger: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "champion", tuple(map(bool, self.champion)))
        object.__setattr__(self, "challenger", tuple(map(bool, self.challenger)))
        if len(self.champion) != len(self.challenger):
            raise ValueError(f"{len(self.champion)} outcomes of the champion, {len(self.challenger)} of the challenger")

    @classmethod
    def identity(cls, same: list[bool]) -> Self:
        """Whether the challenger's output is the champion's; the champion is always identical to itself."""
        return cls((True,) * len(same), tuple(same))

    def __len__(self) -> int:
        return len(self.champion)


@dataclass(frozen=True)
class Evidence:
    """What was measured on both models.

    - ``retention``: unchanging facts, right or not
    - ``unrelated``: prompts that no lesson touches, output identical to the champion's (:meth:`Pairs.identity`)
    - ``new_lessons``: this cycle's lessons, exact match from the weights alone
    - ``earlier``: earlier cycles' lessons, exact match from the weights alone
    """

    retention: Pairs
    unrelated: Pairs
    new_lessons: Pairs = Pairs()
    earlier: Pairs = Pairs()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Frozen):
    """One comparison. ``low`` is the lower bound that was compared with ``margin`` (see ``name``)."""

    name: str
    value: float
    low: float
    margin: float
    n: int
    passed: bool


class Verdict(_Frozen):
    """The gate's decision, in sentences and in figures."""

    promoted: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]

    def save(self, path: Path) -> None:
        """A verdict that is there is whole: it says that its cycle is over."""
        write_whole(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


def decide(evidence: Evidence, settings: GateSettings) -> Verdict:
    """Promote when every check passes; a challenger identical to the champion passes whatever the number of probes."""
    judged = [
        _floor(evidence.retention, settings.retention_margin),
        _non_inferior("retention", evidence.retention, settings.retention_margin, settings.confidence),
        _non_inferior("unrelated", evidence.unrelated, settings.unrelated_margin, settings.confidence),
        _non_inferior("new lessons", evidence.new_lessons, settings.new_lessons_margin, settings.confidence, True),
        _non_inferior("earlier lessons", evidence.earlier, settings.earlier_margin, settings.confidence, True),
    ]
    checks = tuple(check for check, _ in judged)
    reasons = (*(reason for _, reason in judged), _what_it_learned(evidence.new_lessons))
    return Verdict(promoted=all(check.passed for check in checks), reasons=reasons, checks=checks)


def _floor(pairs: Pairs, margin: float) -> tuple[Check, str]:
    """Of the probes that the champion has right, the share still right must be at least 1 - margin, by its value."""
    found = kept(pairs.champion, pairs.challenger)
    if found.n == 0:
        passed = len(pairs) > 0  # a champion that knew nothing has nothing to lose; no probes at all is no evidence
        reason = "retention kept: the champion had no probe right, so there was nothing to keep"
        return Check(name="retention kept", value=0.0, low=0.0, margin=margin, n=0, passed=passed), reason
    passed = found.value >= 1 - margin - 1e-9
    reason = (
        f"retention kept: {round(found.value * found.n)} of the {found.n} probes right before are still right "
        f"({_share(found.value)}), {'at or above' if passed else 'below'} the floor of {_share(1 - margin)}"
    )
    check = Check(name="retention kept", value=found.value, low=found.low, margin=margin, n=found.n, passed=passed)
    return check, reason


def _non_inferior(
    name: str, pairs: Pairs, margin: float, confidence: float, optional: bool = False
) -> tuple[Check, str]:
    """``optional`` sets may be empty (a first cycle has no earlier lessons); the others must have been measured."""
    if not pairs:
        reason = f"{name}: nothing to compare" if optional else f"{name}: nothing was measured, so nothing is shown"
        return Check(name=name, value=0.0, low=0.0, margin=margin, n=0, passed=optional), reason
    found = paired_difference(pairs.champion, pairs.challenger, confidence)
    passed = found.low > -margin or found.low == found.high == 0.0  # a margin of 0 still lets an identical model pass
    reason = (
        f"{name}: {sum(pairs.challenger)} of {found.n} against the champion's {sum(pairs.champion)}, "
        f"a difference of {_signed(found.value)} with lower bound {_signed(found.low)}, "
        f"{'above' if passed else 'not above'} the margin of {_signed(-margin)}"
    )
    return Check(name=name, value=found.value, low=found.low, margin=margin, n=found.n, passed=passed), reason


def _what_it_learned(pairs: Pairs) -> str:
    gained = sum(new and not old for old, new in zip(pairs.champion, pairs.challenger, strict=True))
    if gained == 0:
        return "it learned nothing new: no lesson is right that the champion had wrong"
    return f"it learned {gained} of the {len(pairs) - sum(pairs.champion)} lessons that the champion had wrong"


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:+.3f}"
