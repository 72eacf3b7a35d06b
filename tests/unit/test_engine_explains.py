"""Every answer of the engine carries its explanation: what was chosen from what, and what the text rests on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.config import MemorySettings
from pipeline.evaluate.protocol import Message, prompt_messages
from pipeline.memory.features import Pair
from pipeline.memory.mixture import Mixture
from pipeline.memory.router import LogOdds, Router
from pipeline.memory.state import FEATURES
from pipeline.memory.types import Reading, SlotWeight, Viewer
from pipeline.model.backbone import Prompt
from serve.decode_loop import Served
from serve.engine import BatchEngine, EngineAnswer, EngineRequest, option_probabilities
from serve.running_batch import Sampling
from serve.watermark import Watermark

QUESTION = "Which city do Kazakhs call their capital?"
SLOT = SlotWeight("les_1", "What is the capital of Kazakhstan?", "Astana", 0.4, 1.0, 0.8)


class Saying:
    """A text stream whose one token is the whole text."""

    stopped = False

    def __init__(self) -> None:
        self.text = ""

    def push(self, token: int) -> str:
        return self.text

    def finish(self) -> str:
        return ""


class Mixing:
    """Says the best copied answer with the share that it was given, or else "dunno"."""

    end_token = 0
    max_new_tokens = max_prompt_tokens = 50

    def __init__(self) -> None:
        self.mixtures: list[Mixture | None] = []
        self.running: list[Mixture | None] = []
        self.streams: list[Saying] = []

    def render(self, messages: Sequence[Message]) -> Prompt:
        return Prompt((1,), (True,))

    def rows(self) -> Mixing:
        return self

    def text_stream(self, stops: Sequence[str]) -> Any:
        self.streams.append(Saying())
        return self.streams[-1]

    def has_room(self, prompts: Sequence[tuple[int, int]]) -> bool:
        return True

    def admit(
        self,
        prompts: Sequence[Prompt],
        limits: Sequence[int],
        sampling: Sequence[Sampling],
        mixtures: Sequence[Mixture | None],
    ) -> list[int]:
        self.mixtures += mixtures
        self.running += mixtures
        for stream, mixture in zip(self.streams[-len(prompts) :], mixtures, strict=True):
            stream.text = mixture.best if mixture else "dunno"
        return [1] * len(prompts)

    def step(self) -> list[int]:
        return [self.end_token] * len(self.running)

    def copied(self, index: int) -> float:
        mixture = self.running[index]
        return mixture.gate if mixture else 0.0

    def drop(self, index: int) -> None:
        self.running[index] = self.running[-1]
        del self.running[-1]

    def clear(self) -> None:
        self.running.clear()

    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[0.0 for _ in row] for row in options]


class Undecided:
    """A memory whose one lesson has the same weight for every question."""

    class _Router:
        def score(self, pairs: Sequence[Pair]) -> LogOdds:
            return np.zeros(len(pairs))

    def __init__(self, slot: SlotWeight) -> None:
        self.router: Router = self._Router()
        self.slot = slot

    def read(self, questions: Sequence[str], viewers: Sequence[Viewer]) -> list[Reading]:
        return [Reading(1 - self.slot.weight, (self.slot,)) for _ in questions]


def answered(slot: SlotWeight, decoder: Mixing | None = None, **changes: Any) -> EngineAnswer:
    async def ask() -> EngineAnswer:
        served = Served(decoder or Mixing(), 1)
        engine = BatchEngine(served, Undecided(slot), MemorySettings(gate=0.65), Watermark())
        try:
            return await engine.answer(EngineRequest(prompt_messages(QUESTION), QUESTION, Viewer(), **changes))
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(ask(), 20))


def test_an_unconfident_copy_says_how_far_it_was_copied_and_cites_only_what_it_says() -> None:
    probable = answered(replace(SLOT, weight=0.6), strategy="copy")
    assert (probable.text, probable.strategy, probable.copied) == ("Astana", "copy", 0.6)
    assert [(cite.lesson_id, cite.belief) for cite in probable.cites] == [("les_1", 1.0)]
    doubtful = answered(SLOT, strategy="copy")
    assert (doubtful.copied, doubtful.cites) == (0.4, ())


def test_a_confident_copy_is_copied_for_certain_without_decoding() -> None:
    decoder = Mixing()
    found = answered(replace(SLOT, weight=0.9), decoder, strategy="copy")
    assert (found.text, found.copied, found.tokens, decoder.mixtures) == ("Astana", 1.0, 0, [])


def test_the_model_s_own_answer_is_no_copy() -> None:
    found = answered(SLOT, strategy="weights")
    assert (found.text, found.copied, found.cites, found.null_weight) == ("dunno", 0.0, (), 1.0)


def test_adaptive_answers_carry_probabilities_and_the_state_that_they_came_from() -> None:
    found = answered(SLOT)
    assert found.choice is not None
    assert found.probabilities == found.choice.probabilities
    assert sum(found.probabilities.values()) == pytest.approx(1.0)
    assert set(found.choice.described()) == set(FEATURES)
    assert found.null_weight == pytest.approx(0.6)


def test_options_share_out_the_mixture() -> None:
    options, scores = ("Astana", "Almaty"), (0.0, 0.0)
    assert option_probabilities(options, scores, None) == {"Astana": 0.5, "Almaty": 0.5}
    shares = Mixture({"astana": 0.6, "Oskemen": 0.2})
    assert option_probabilities(options, scores, shares) == pytest.approx({"Astana": 0.8, "Almaty": 0.2})
    assert answered(SLOT, strategy="copy", options=options).options == pytest.approx({"Astana": 0.7, "Almaty": 0.3})
