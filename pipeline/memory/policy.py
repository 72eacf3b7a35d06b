"""The choice of a strategy: a softmax over strategies from the question's state, learned from ratings as reward.

    pi(s | x) = softmax_s(w_s . x),      w <- w + rate * min(pi(a | x) / p(a), CLIP) * r * grad log pi(a | x)

p(a) is the chance with which the rated answer's strategy was taken, logged with the answer: the gradient of the
expected reward, with importance weights for what another policy decided (Williams 1992; Precup et al. 2000).

What ratings have moved is a fold of ordered events in plain arithmetic (``fsum`` rounds once, whatever the order and
the machine), so replicas that have applied the same events choose alike, and a replay gives the same bits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from math import exp, fsum, sqrt
from typing import Any

from pipeline.feedback.records import HELD, Event
from pipeline.memory.state import FEATURES, STATE_VERSION

CLIP = 5.0  # importance weights above it would let one rare draw decide
REACH = 2.0  # how far ratings may move the shipped weights: vandals bend the policy and do not break it

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """A strategy taken in a state, as it is logged with the answer."""

    strategy: str
    chance: float  # p(a): 1 where the likeliest strategy is taken without exploring
    probabilities: dict[str, float]  # pi over the strategies that were possible
    state: Vector

    def body(self) -> dict[str, Any]:
        """Its place in an answer event."""
        return {
            "strategy": self.strategy,
            "chance": self.chance,
            "possible": list(self.probabilities),
            "state": list(self.state),
            "version": STATE_VERSION,
        }

    def described(self) -> dict[str, float]:
        """The state by the names of its features."""
        return dict(zip(FEATURES, self.state, strict=True))


@dataclass(frozen=True)
class Policy:
    """``weights``: one vector per strategy, in the order of FEATURES; ``shipped``: where ratings began."""

    weights: Mapping[str, Vector]
    shipped: Mapping[str, Vector]

    def probabilities(self, state: Sequence[float], possible: Sequence[str]) -> dict[str, float]:
        scores = {name: fsum(w * x for w, x in zip(self.weights[name], state, strict=True)) for name in possible}
        top = max(scores.values())
        powers = {name: exp(score - top) for name, score in scores.items()}
        total = fsum(powers.values())
        return {name: power / total for name, power in powers.items()}

    def choose(self, state: Vector, possible: Sequence[str], explore: float, draw: random.Random) -> Choice:
        """The likeliest strategy, or with chance ``explore`` one drawn from the softmax."""
        probabilities = self.probabilities(state, possible)
        likeliest = max(probabilities, key=probabilities.__getitem__)
        taken = likeliest
        if explore and draw.random() < explore:
            taken = draw.choices(list(probabilities), list(probabilities.values()))[0]
        chance = (1 - explore) * (taken == likeliest) + explore * probabilities[taken]
        return Choice(taken, chance, probabilities, state)

    def rated(self, taken: Mapping[str, Any], reward: float, rate: float) -> Policy:
        """One step of the gradient for a logged choice (:meth:`Choice.body`) and a reward in [-1, 1]."""
        state, possible = taken["state"], taken["possible"]
        probabilities = self.probabilities(state, possible)
        strategy = taken["strategy"]
        step = rate * reward * min(probabilities[strategy] / taken["chance"], CLIP)
        moved = dict(self.weights)
        for name in possible:
            slope = step * ((name == strategy) - probabilities[name])
            moved[name] = tuple(w + slope * x for w, x in zip(moved[name], state, strict=True))
        return replace(self, weights=self._held(moved))

    def _held(self, moved: Mapping[str, Vector]) -> dict[str, Vector]:
        """Back to within REACH of the shipped weights."""
        ways = {name: [w - s for w, s in zip(moved[name], self.shipped[name], strict=True)] for name in moved}
        length = sqrt(fsum(d * d for way in ways.values() for d in way))
        if length <= REACH:
            return dict(moved)
        share = REACH / length
        return {
            name: tuple(s + share * d for s, d in zip(self.shipped[name], way, strict=True))
            for name, way in ways.items()
        }


class RatedPolicy:
    """Each tenant's policy after the events seen so far. One rating counts per answer, the first."""

    def __init__(self, rate: float, shipped: Policy | None = None) -> None:
        self.applied_seq = 0
        self._rate = rate
        self._shipped = shipped or shipped_policy()
        self._policies: dict[str, Policy] = {}
        self._rated: set[str] = set()

    def of(self, tenant: str) -> Policy:
        return self._policies.get(tenant, self._shipped)

    def apply(self, events: Iterable[Event]) -> None:
        """Fold events in; those at or below ``applied_seq`` are known already."""
        for event in sorted(events, key=lambda event: event.seq):
            if event.seq > self.applied_seq:
                self._step(event)
                self.applied_seq = event.seq

    def _step(self, event: Event) -> None:
        taken = None if HELD in event.body else event.body.get("choice")
        if event.kind != "feedback" or event.body.get("kind") != "rating" or not taken:
            return
        if taken["version"] != STATE_VERSION or event.response_id is None or event.response_id in self._rated:
            return
        self._rated.add(event.response_id)
        self._policies[event.tenant] = self.of(event.tenant).rated(taken, float(event.body["value"]), self._rate)


def policy_from(saved: Mapping[str, Any]) -> Policy:
    """The policy in a file that :func:`pipeline.memory.policy_fit.fit_policy` wrote."""
    if saved["version"] != STATE_VERSION or tuple(saved["features"]) != FEATURES:
        raise ValueError(
            f"policy of version {saved['version']} with {len(saved['features'])} features: this code has version "
            f"{STATE_VERSION} with {len(FEATURES)}; fit it again with 'agm strategies --fit'"
        )
    weights = {name: tuple(map(float, row)) for name, row in saved["weights"].items()}
    return Policy(weights, weights)


@lru_cache(maxsize=1)
def shipped_policy() -> Policy:
    """The weights that ship with the package, fitted offline on generated probes."""
    return policy_from(json.loads((files("pipeline.memory") / "policy.json").read_text(encoding="utf-8")))
