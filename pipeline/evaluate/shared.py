"""Models that share their ordinary weights, asked through one store: what a model reads alike it answers alike.

A memory layer adds exactly zero to a prompt that none of its keys reaches, and a slot that an update left alone adds
what it added before (``Answerer.readings`` names it). So whoever compares versions decodes only what has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.evaluate.answers import SAVED_AFTER, AnswerCache, CachedAnswer, model_name
from pipeline.evaluate.progress import batches
from pipeline.evaluate.protocol import PROTOCOL, Message, prompt_messages

if TYPE_CHECKING:
    from pipeline.model.answerer import Answerer

Value = TypeVar("Value")


class Store:
    """Results by key, for as long as the process lives; where there is a ``cache``, texts of the bare weights stay."""

    def __init__(self, cache: AnswerCache | None = None) -> None:
        self.cache = cache
        self.known: dict[str, Any] = {}


class SharedAnswerer:
    """An answerer that asks its model only what no other of the ``store`` has answered for it."""

    def __init__(self, answerer: Answerer, store: Store) -> None:
        self.asked = 0  # prompts and probes that the model itself had to answer
        self._answerer = answerer
        self._store = store
        self._weights = model_name(answerer, replace(answerer.bundle, memory=None))

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int | None = None,
        guesses: Sequence[str | None] | None = None,
    ) -> list[CachedAnswer]:
        limit = max_new_tokens or self._answerer.bundle.recipe.model.max_new_tokens
        readings = self._answerer.readings(prompts)
        keys = [self._key(reading, limit, list(prompt)) for reading, prompt in zip(readings, prompts, strict=True)]
        bare = [key for key, reading in zip(keys, readings, strict=True) if not reading]
        self._recall(bare)

        def decoded(numbers: Sequence[int]) -> list[str]:
            guessed = None if guesses is None else [guesses[i] for i in numbers]
            found = self._answerer.generate([prompts[i] for i in numbers], max_new_tokens=limit, guesses=guessed)
            return [answer.text for answer in found]

        return [CachedAnswer(text) for text in self._each(keys, decoded, kept=set(bare))]

    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """As :meth:`Answerer.score`."""
        readings = self._answerer.readings([prompt_messages(question) for question in questions])
        asked = zip(readings, questions, options, strict=True)
        keys = [self._key(reading, question, list(texts)) for reading, question, texts in asked]

        def scored(numbers: Sequence[int]) -> list[list[float]]:
            return self._answerer.score([questions[i] for i in numbers], [options[i] for i in numbers])

        return self._each(keys, scored)

    def _each(
        self, keys: Sequence[str], find: Callable[[Sequence[int]], list[Value]], kept: Iterable[str] = ()
    ) -> list[Value]:
        """The value of each key, found once; the ``kept`` ones stay on disk."""
        known, lasting = self._store.known, set(kept)
        missing = {key: number for number, key in enumerate(keys) if key not in known}
        for part in batches(list(missing), SAVED_AFTER):
            found = dict(zip(part, find([missing[key] for key in part]), strict=True))
            known |= found
            self.asked += len(part)
            if self._store.cache is not None:
                self._store.cache.save({key: str(value) for key, value in found.items() if key in lasting})
        return [known[key] for key in keys]

    def _recall(self, keys: Sequence[str]) -> None:
        if self._store.cache is not None:
            self._store.known |= self._store.cache.find([key for key in keys if key not in self._store.known])

    def _key(self, *named: object) -> str:
        told = json.dumps([self._weights, PROTOCOL, *named], ensure_ascii=False)
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()
