"""Equation 3 on one slot: b <- b + alpha * trust * (onehot(answer) - b), one vote per source.

A ledger is a pure function of where its beliefs started and of the votes that stand, in the order in which they were
cast; so a replay, a snapshot and a change of mind all give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.memory.types import question_key

# What a teacher's word counts against askers' later evidence: more than ten independent askers overturn it.
TAUGHT_SUPPORT = 10.0
# What the model's own answer counts where only askers have spoken: a third agreeing asker makes the lesson everybody's.
PRIOR_SUPPORT = 2.0
_MILLI = 1000  # votes are tallied in whole thousandths: integers add up to the same in any order

Beliefs = dict[str, float]
Counted = tuple[Beliefs, str | None, float]  # beliefs, the best-believed answer, support


@dataclass(frozen=True, slots=True)
class Vote:
    """One source's standing statement about one slot: for (value > 0) or against (value < 0) an answer."""

    source: str
    answer: str
    value: float
    trust: float
    seq: int = 0

    @property
    def strength(self) -> float:
        return self.trust * abs(self.value)


@dataclass(frozen=True, slots=True)
class Step:
    """A vote with the step size that it took and the beliefs that it left."""

    vote: Vote
    alpha: float
    beliefs: Beliefs


def step_size(vote: Vote, support: float, alpha_min: float) -> float:
    """alpha = max(alpha_min, trust / (support + trust)): the more evidence stands, the less one vote moves."""
    total = support + vote.strength
    return max(alpha_min, vote.strength / total if total else 0.0)


def moved(beliefs: Beliefs, vote: Vote, alpha: float) -> Beliefs:
    """The delta rule on one slot. A vote against an answer moves that answer's belief towards 0 and no other's."""
    step = min(1.0, alpha * min(1.0, vote.strength))
    if vote.value < 0:
        return {answer: b - step * b if answer == vote.answer else b for answer, b in beliefs.items()}
    answers = dict.fromkeys((*beliefs, vote.answer))
    return {answer: (b := beliefs.get(answer, 0.0)) + step * ((answer == vote.answer) - b) for answer in answers}


@dataclass(slots=True)
class Tally:
    """What stands for each candidate; derived from the votes, and kept because votes come one at a time."""

    strength: dict[str, int] = field(default_factory=dict)  # for less against, in thousandths
    spellings: dict[str, tuple[str, int]] = field(default_factory=dict)  # key -> (candidate, statements about it)

    def count(self, vote: Vote, sign: int) -> None:
        direction = sign if vote.value > 0 else -sign
        self.strength[vote.answer] = self.strength.get(vote.answer, 0) + direction * round(vote.strength * _MILLI)
        self.spell(vote.answer, sign)

    def spell(self, answer: str, sign: int) -> None:
        key = question_key(answer)
        known, statements = self.spellings.get(key, (answer, 0))
        if statements + sign:
            self.spellings[key] = (known, statements + sign)
        else:
            del self.spellings[key]


@dataclass(slots=True)
class Ledger:
    """The evidence behind one slot: where its beliefs started, and one vote per source since, in order.

    A new vote is counted at once. A source that changes its mind makes the votes after its old one count anew; that
    is done when the beliefs are next asked for, so many changes between two looks cost one recount.
    """

    base: Beliefs = field(default_factory=dict)
    base_support: float = PRIOR_SUPPORT
    alpha_min: float = 0.02
    votes: dict[str, Vote] = field(default_factory=dict)  # by source
    settled: str | None = None  # the answer that a teacher's word or enough askers have settled
    _tally: Tally | None = field(default=None, init=False, repr=False, compare=False)
    _counted: Counted | None = field(default=None, init=False, repr=False, compare=False)

    def add(self, vote: Vote) -> bool:
        """Count a vote; ``False`` for a source that repeats itself, which adds nothing."""
        tally, old = self._tallied(), self.votes.get(vote.source)
        if old is not None and (old.answer, old.value) == (vote.answer, vote.value):
            return False
        if old is not None:
            del self.votes[vote.source]
            tally.count(old, -1)
            self._counted = None
        elif self._counted is not None:
            self._counted = self._after(self._counted, vote)[0]
        self.votes[vote.source] = vote
        tally.count(vote, 1)
        return True

    def candidate(self, answer: str) -> str | None:
        """The candidate that ``answer`` is, whatever its case, spacing and closing punctuation."""
        known = self._tallied().spellings.get(question_key(answer))
        return known[0] if known else None

    def newly_settled(self) -> str | None:
        """The answer that askers have just settled: as much support as overturns a teacher, and most of all there is.

        Says so once; the answer is settled from then on.
        """
        strength = self._tallied().strength
        answer = max(strength, key=strength.__getitem__, default=None)
        if answer is None or answer == self.settled or strength[answer] <= TAUGHT_SUPPORT * _MILLI:
            return None
        everything = self.base_support * _MILLI + sum(max(0, each) for each in strength.values())
        if 2 * strength[answer] <= everything:
            return None
        self.settled = answer
        return answer

    @property
    def beliefs(self) -> Beliefs:
        return self._current()[0]

    @property
    def best(self) -> str | None:
        """The best-believed answer; the incumbent keeps a tie. ``None`` where no answer was ever voted for."""
        return self._current()[1]

    def steps(self) -> Iterator[Step]:
        """Every standing vote in order, with what it did."""
        counted = self._start()
        for vote in self.votes.values():
            counted, alpha = self._after(counted, vote)
            yield Step(vote, alpha, counted[0])

    def _current(self) -> Counted:
        if self._counted is None:
            counted = self._start()
            for vote in self.votes.values():
                counted = self._after(counted, vote)[0]
            self._counted = counted
        return self._counted

    def _start(self) -> Counted:
        return self.base, next(iter(self.base), None), self.base_support

    def _after(self, counted: Counted, vote: Vote) -> tuple[Counted, float]:
        beliefs, held, support = counted
        alpha = step_size(vote, support, self.alpha_min)
        after = moved(beliefs, vote, alpha)
        best = max(after, key=lambda answer: (after[answer], answer == held), default=None)
        return (after, best, support + vote.strength), alpha

    def _tallied(self) -> Tally:
        if self._tally is None:
            self._tally = Tally()
            for answer in self.base:
                self._tally.spell(answer, 1)
            for vote in self.votes.values():
                self._tally.count(vote, 1)
        return self._tally


def born(answer: str, alpha_min: float = 0.02) -> Ledger:
    """A slot that is right at once: belief 1 in its answer."""
    return Ledger({answer: 1.0}, TAUGHT_SUPPORT, alpha_min, settled=answer)
