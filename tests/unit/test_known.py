"""What depends on texts alone is computed once, and never while time is measured."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.answers import Switch
from pipeline.evaluate.known import KnownPairs, KnownVectors


class Lengths:
    """Encodes a text as its length, reads a pair as the difference of both, and remembers what it was asked."""

    name = "lengths"
    dimension = 2
    tokenizer: Any = SimpleNamespace()

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        self.asked += inputs
        return np.array([[len(text), 1] for text in inputs], dtype=np.float32).reshape(-1, 2)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.asked += pairs
        return [float(len(left) - len(right)) for left, right in pairs]


def test_a_text_is_encoded_once() -> None:
    plain, kept = Lengths(), Switch()
    known = KnownVectors(plain, kept)
    texts = ["one", "three", "one"]
    assert np.array_equal(known.encode(texts), Lengths().encode(texts))
    assert np.array_equal(known.encode(["three", "seventeen"]), Lengths().encode(["three", "seventeen"]))
    assert plain.asked == ["one", "three", "seventeen"]
    assert known.encode([]).shape == (0, 2)
    with kept.off():
        known.encode(["one"])
    assert plain.asked[3:] == ["one"]


def test_a_pair_is_read_once() -> None:
    plain, kept = Lengths(), Switch()
    known = KnownPairs(plain, kept)
    pairs = [("a", "bc"), ("ab", "c"), ("a", "bc")]
    assert known.score(pairs) == Lengths().score(pairs) == [-1.0, 1.0, -1.0]
    assert known.score(pairs) == [-1.0, 1.0, -1.0]
    assert plain.asked == pairs[:2]
    with kept.off():
        assert known.score(pairs[:1]) == [-1.0]
    assert plain.asked == [*pairs[:2], pairs[0]]
