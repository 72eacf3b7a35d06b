"""Knowledge that must stay: unchanging facts, each against distractors of the same type.

Free generation is the wrong ruler here (a model of this size has 0.5 % of WebQuestions right), so a probe counts as
*right* when the true answer has the highest length-normalised likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pipeline.data.lines import RetentionProbe
from pipeline.evaluate.metrics import Interval, wilson
from pipeline.evaluate.progress import Progress, batches


class Scorer(Protocol):
    """The part of the answerer that scores given answers: mean log-likelihood per answer token."""

    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]: ...


def right(
    answerer: Scorer, probes: Sequence[RetentionProbe], *, batch: int = 32, progress: Progress | None = None
) -> list[bool]:
    """For each probe, whether the true answer scores strictly above every distractor."""
    outcomes: list[bool] = []
    for part in batches(probes, batch, progress):
        scores = answerer.score([probe.question for probe in part], [(p.answer, *p.distractors) for p in part])
        outcomes += [first > max(others) for first, *others in scores]
    return outcomes


def kept(before: Sequence[bool], after: Sequence[bool], confidence: float = 0.95) -> Interval:
    """(right before and after) / (right before), with Wilson's interval; n is the number right before."""
    still = [a for b, a in zip(before, after, strict=True) if b]
    return wilson(sum(still), len(still), confidence)
