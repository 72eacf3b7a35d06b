"""How much a source counts: the reward is what later evidence says about the votes that it cast.

A vote is judged when its slot settles: by a teacher's correction, or by so many askers that they would overturn a
teacher. Votes for the settled answer are confirmed, the others contradicted; the vote that settles is not judged,
nor is any later one, so that repeating what is settled earns nothing.

A fact that changed in the world contradicts whoever was right before: a record says how often a source agreed with
what came later, not who is honest. It is bounded, so nobody is silenced and nobody becomes a teacher.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.memory.ledger import Vote

FLOOR = 0.1

Source = tuple[str, str]  # (tenant, name)


@dataclass(slots=True)
class Record:
    confirmed: int = 0
    contradicted: int = 0


@dataclass(slots=True)
class Sources:
    """What became of each source's votes. ``prior``: votes that have to be judged before a record weighs half."""

    prior: float
    records: dict[Source, Record] = field(default_factory=dict)

    def multiplier(self, tenant: str, source: str) -> float:
        """Twice the mean of Beta(prior + confirmed, prior + contradicted): 1 for the unknown, in [FLOOR, 2)."""
        record = self.records.get((tenant, source))
        if record is None:
            return 1.0
        confirmed, contradicted = self.prior + record.confirmed, self.prior + record.contradicted
        return max(FLOOR, 2 * confirmed / (confirmed + contradicted))

    def judge(self, tenant: str, votes: Iterable[Vote], answer: str, settled_by: str) -> None:
        """Every vote but the settling source's own, against the answer that the slot settled on."""
        for vote in votes:
            if vote.source == settled_by:
                continue
            record = self.records.setdefault((tenant, vote.source), Record())
            if (vote.answer == answer) == (vote.value > 0):
                record.confirmed += 1
            else:
                record.contradicted += 1

    def forget(self, tenant: str) -> None:
        """No source of the tenant has a record any more: an erasure is followed by everything that remains."""
        self.records = {source: record for source, record in self.records.items() if source[0] != tenant}
