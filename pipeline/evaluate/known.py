"""What depends on texts alone, computed once for all systems, orders and lengths: vectors, and pairs read closely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluate.answers import Store, Switch
from pipeline.memory.pair_encoder import PairReader
from pipeline.model.encoder import Encoder, Vectors


class KnownVectors:
    """An encoder of texts that encodes each text once, while ``kept`` is on."""

    def __init__(self, encoder: Encoder, kept: Switch) -> None:
        self.name, self.dimension = encoder.name, encoder.dimension
        self._encoder, self._kept, self._store = encoder, kept, Store()

    def encode(self, inputs: Sequence[str]) -> Vectors:
        if not self._kept.on or not inputs:
            return self._encoder.encode(inputs)
        found = self._store.each(inputs, lambda places: list(self._encoder.encode([inputs[place] for place in places])))
        return np.stack(found)


class KnownPairs:
    """A router's pair encoders that read each pair once, while ``kept`` is on."""

    def __init__(self, reader: PairReader, kept: Switch) -> None:
        self.tokenizer = reader.tokenizer
        self._reader, self._kept, self._store = reader, kept, Store()

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        if not self._kept.on:
            return self._reader.score(pairs)
        keys = ["\0".join(pair) for pair in pairs]
        return self._store.each(keys, lambda places: self._reader.score([pairs[place] for place in places]))
