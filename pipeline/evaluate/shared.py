"""Models that share their ordinary weights, asked through one store: what a model reads alike it answers alike.

A memory layer adds exactly zero to a prompt that none of its keys reaches, and a slot that an update left alone adds
what it added before (``Answerer.readings`` names it). So whoever compares versions decodes only what has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.evaluate.answers import CachedAnswer, Store, model_name, result_key
from pipeline.evaluate.protocol import Message, prompt_messages

if TYPE_CHECKING:
    from pipeline.model.answerer import Answerer


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
        bare = {key for key, reading in zip(keys, readings, strict=True) if not reading}

        def decoded(places: Sequence[int]) -> list[str]:
            self.asked += len(places)
            guessed = None if guesses is None else [guesses[place] for place in places]
            asked = [prompts[place] for place in places]
            found = self._answerer.generate(asked, max_new_tokens=limit, guesses=guessed)
            return [answer.text for answer in found]

        return [CachedAnswer(text) for text in self._store.each(keys, decoded, lasting=bare)]

    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """As :meth:`Answerer.score`."""
        readings = self._answerer.readings([prompt_messages(question) for question in questions])
        asked = zip(readings, questions, options, strict=True)
        keys = [self._key(reading, "score", question, list(texts)) for reading, question, texts in asked]

        def scored(places: Sequence[int]) -> list[list[float]]:
            self.asked += len(places)
            return self._answerer.score([questions[place] for place in places], [options[place] for place in places])

        return self._store.each(keys, scored)

    def _key(self, reading: str, *named: object) -> str:
        """What reads nothing has the key of the bare weights' own answers, whoever asked for them."""
        return result_key(self._weights, *named, *([reading] if reading else []))
