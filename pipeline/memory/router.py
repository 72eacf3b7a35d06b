"""Equation 2: softmax(memory . x / sqrt(d)) over candidate lessons and a null slot, with a trained second stage.

The second stage decides scope: the same fact in other words, or a neighbouring fact. Each (question, phrasing) pair
gets log-odds against the null slot, whose own logit is 0; so one candidate alone gets the weight sigmoid(log-odds).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.memory.features import Pair, WordTable, features
from pipeline.memory.pair_encoder import STYLES, PairReader, load_pair_encoders, style
from pipeline.memory.types import question_key
from pipeline.memory.typos import Mender, common_words

SAME_WORDS = 12.0  # log-odds of a question that is written like the lesson
NO_RIVAL = -6.0  # what the pair encoder says of a rival that is not there
UNSCORED = -12.0  # log-odds of a candidate that the cheap head rules out

LogOdds = NDArray[np.float64]


class Router(Protocol):
    """Log-odds, against the null slot, that each pair is one question."""

    def score(self, pairs: Sequence[Pair]) -> LogOdds: ...


class Head:
    """A one-layer network: features standardised, a few hidden units, one logit."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        names = ("mean", "scale", "hidden", "hidden_bias", "out", "out_bias")
        self._parts = [tensors[f"{prefix}.{name}"].double().numpy() for name in names]

    def __call__(self, inputs: NDArray[np.float32]) -> LogOdds:
        """(n, features) to (n,)."""
        mean, scale, hidden, hidden_bias, out, out_bias = self._parts
        units = np.tanh((inputs - mean) / scale @ hidden + hidden_bias)
        result: LogOdds = units @ out + out_bias[0]
        return result


class TrainedRouter:
    """Three steps, cheap to dear: same words; a head on features; a pair encoder for what the head leaves open."""

    def __init__(self, tensors: Mapping[str, Tensor], pair_encoders: PairReader) -> None:
        self.tensors = dict(tensors)
        self.pair_encoders = pair_encoders
        self._first = Head(tensors, "first")
        self._final = {name: Head(tensors, f"{name}.final") for name in STYLES}
        self._open = float(tensors["open"][0])  # log-odds of the first head under which nothing is read closely
        tokenizer = pair_encoders.tokenizer

        def pieces(word: str) -> list[int]:
            return tokenizer.encode(word, add_special_tokens=False) or [0]

        self._table, self._mender = WordTable(pieces), Mender(pieces, common_words(tokenizer.get_vocab()))

    def score(self, pairs: Sequence[Pair]) -> LogOdds:
        scores = np.full(len(pairs), UNSCORED)
        same = np.array([question_key(p.question) == question_key(p.phrasing) for p in pairs], dtype=bool)
        scores[same] = SAME_WORDS
        settled = {pair.asking for pair, exact in zip(pairs, same, strict=True) if exact}
        rest = [row for row, pair in enumerate(pairs) if pair.asking not in settled]
        if rest:
            scores[rest] = self._compare([pairs[row] for row in rest])
        return scores

    def _compare(self, asked: list[Pair]) -> LogOdds:
        pairs = [replace(pair, question=self._mender.mended(pair.question, pair.phrasing)) for pair in asked]
        inputs = features(pairs, self._table)
        first = self._first(inputs)
        rows = close_rows(pairs, first, self._open)
        scores = np.full(len(pairs), UNSCORED)
        if rows:
            close = [pairs[row] for row in rows]
            read = self.pair_encoders.score([(pair.question, pair.phrasing) for pair in close])
            judged = final_inputs(inputs[rows], close, read)
            styles = np.array([style(pair.question, pair.phrasing) for pair in close])
            scores[rows] = np.select(
                [styles == name for name in STYLES], [self._final[name](judged) for name in STYLES]
            )
        return scores


def final_inputs(inputs: NDArray[np.float32], pairs: Sequence[Pair], read: Sequence[float]) -> NDArray[np.float32]:
    """(n, features + 2): what the pair encoder says of each pair, and how far that is above its best rival lesson."""
    best: dict[int, dict[int, float]] = defaultdict(dict)
    for pair, value in zip(pairs, read, strict=True):
        best[pair.asking][pair.lesson] = max(value, best[pair.asking].get(pair.lesson, value))
    margins = [
        value - max((other for lesson, other in best[pair.asking].items() if lesson != pair.lesson), default=NO_RIVAL)
        for pair, value in zip(pairs, read, strict=True)
    ]
    return np.column_stack([inputs, np.array(read, np.float32), np.array(margins, np.float32)])


CLOSELY = 4  # phrasings per question that the pair encoder reads


def close_rows(pairs: Sequence[Pair], first: LogOdds, floor: float) -> list[int]:
    """Per question the rows worth reading closely: the best few by the first head, above its floor."""
    taken: dict[int, int] = {}
    rows = []
    for row in np.argsort(-first, kind="stable").tolist():
        asking = pairs[row].asking
        if first[row] >= floor and taken.get(asking, 0) < CLOSELY:
            taken[asking] = taken.get(asking, 0) + 1
            rows.append(row)
    return rows


def weights_with_null(log_odds: LogOdds) -> tuple[LogOdds, float]:
    """Softmax over the slots and a null slot at 0: the slots' weights and the null weight, together 1."""
    top = max(0.0, float(log_odds.max(initial=0.0)))
    slots, null = np.exp(log_odds - top), np.exp(-top)
    total = float(slots.sum() + null)
    weights: LogOdds = slots / total
    return weights, float(null / total)


def load_router(tensors: Mapping[str, Tensor] | None = None) -> TrainedRouter:
    """The router in ``tensors`` (a bundle's), or the one that ships with the package."""
    if tensors:
        return TrainedRouter(tensors, load_pair_encoders(tensors))
    return _shipped_router()


@lru_cache(maxsize=1)
def _shipped_router() -> TrainedRouter:
    tensors = load_safetensors((files("pipeline.memory") / "router.safetensors").read_bytes())
    return TrainedRouter(tensors, load_pair_encoders(tensors))
