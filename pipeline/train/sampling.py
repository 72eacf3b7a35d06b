"""Samples without replacement whose inclusion probabilities are exact, also where things weigh differently.

    pi_i = min(1, c w_i),  with c such that the pi_i sum to the size of the sample

The draw is systematic (Madow 1949): the probabilities are laid end to end in a random order, and a comb with teeth at
distance 1, put down at random, picks the things that it hits. It is a function of weights, size and seed alone: there
is no reservoir whose state would have to be saved.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import floor, fsum


def inclusion(weights: Sequence[float], count: int) -> list[float]:
    """pi_i of things with positive weights in a sample of ``count`` of them, or of all where there are no more."""
    if count >= len(weights):
        return [1.0] * len(weights)
    heaviest = sorted(weights, reverse=True)
    certain, share = 0, count / fsum(weights)
    while heaviest[certain] * share > 1:
        certain += 1
        share = (count - certain) / fsum(heaviest[certain:])
    return [min(1.0, share * weight) for weight in weights]


def drawn(weights: Mapping[str, float], count: int, seed: str) -> tuple[str, ...]:
    """``count`` names, or all where there are no more, in the order of ``weights``."""
    generator, order = random.Random(seed), list(weights)
    chances = dict(zip(weights, inclusion(list(weights.values()), count), strict=True))
    generator.shuffle(order)
    start, end, hit = generator.random(), 0.0, set[str]()
    for place, name in enumerate(order, 1):
        begin, end = end, end + chances[name]
        if place == len(order):
            end = round(end)  # the sum is whole; what is off is rounding
        if floor(end - start) > floor(begin - start):
            hit.add(name)
    return tuple(name for name in weights if name in hit)
