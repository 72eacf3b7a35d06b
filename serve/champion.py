"""From the registry's champion to something that answers: load beside the old one, check, hand over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from sqlalchemy import Engine as Database

from pipeline.config import ServeSettings
from pipeline.evaluate.protocol import Message, prompt_messages
from pipeline.home import Home
from pipeline.memory.router import load_router
from pipeline.model.answerer import Answerer
from pipeline.model.backbone import Prompt
from pipeline.model.bundle import Bundle
from pipeline.tracking.registry import Registry, champion_version
from serve.decode_loop import Served
from serve.int8 import quantise
from serve.running_batch import GREEDY, RunningBatch
from serve.text_stream import TextStream

CANARY_QUESTION = "What is the capital of France?"
CANARIES = (CANARY_QUESTION, "Who wrote the play Hamlet?", "How many days does a week have?")
CANARY_OPTIONS = ("Paris", "Reykjavik")
CANARY_TOKENS = 4


class NoChampion(RuntimeError):  # noqa: N818 - reads as what happened
    """There is nothing to serve yet."""


class CanaryFailed(RuntimeError):  # noqa: N818
    """A bundle loaded but does not answer sensibly."""


class AnswererDecoder:
    """The answerer in the form that the engine asks for."""

    def __init__(self, answerer: Answerer, settings: ServeSettings) -> None:
        self.answerer = answerer
        self._settings = settings
        model = answerer.bundle.recipe.model
        self.max_new_tokens, self.max_prompt_tokens = model.max_new_tokens, model.max_prompt_tokens
        self.end_token = answerer.backbone.end_token
        if settings.weights == "int8":
            if answerer.backbone.device.type != "cpu":
                raise ValueError("serve.weights is 'int8', which is for CPUs: use 'full' on this device")
            quantise(answerer.backbone.model)

    def render(self, messages: Sequence[Message]) -> Prompt:
        return self.answerer.backbone.prompt(messages)

    @cached_property
    def _rows(self) -> RunningBatch:
        settings = self._settings
        return RunningBatch(
            self.answerer,
            width=settings.max_batch,
            kv_tokens=settings.kv_tokens,
            prefix_tokens=settings.prefix_tokens,
            invariant=settings.batch_invariant,
        )

    def rows(self) -> RunningBatch:
        return self._rows

    def text_stream(self, stops: Sequence[str]) -> TextStream:
        return TextStream(self.answerer.backbone.tokenizer, stops)

    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        return self.answerer.score(questions, options)


class ChampionLoader:
    """Blocking; the replica runs it outside its event loop."""

    def __init__(self, home: Home, database: Database, settings: ServeSettings) -> None:
        self._settings = settings
        self._database = database
        self._registry = Registry(home, database)

    def current(self) -> tuple[int, int] | None:
        """(promotion id, version)."""
        return champion_version(self._database)

    def first(self) -> Served:
        current = self.current()
        if current is None:
            raise NoChampion("no model has been promoted in this home: initialise the registry first")
        return self.load(current[1], None)

    def load(self, version: int, old: Served | None) -> Served:
        """The bundle proves its own digest on loading; the canary proves that it answers."""
        bundle = Bundle.load(self._registry.folder(version))
        decoder = AnswererDecoder(Answerer.load(bundle, share=_answerer(old)), self._settings)
        check(decoder, version)
        return Served(decoder, version, load_router(bundle.router or None))


def check(decoder: AnswererDecoder, version: int) -> None:
    """Raises :class:`CanaryFailed` unless simple questions get a text and finite likelihoods.

    They run on the rows that will serve, a step at a time, so that requests on shared weights hardly wait.
    """
    rows, prompts = decoder.rows(), [decoder.render(prompt_messages(question)) for question in CANARIES]
    count = len(prompts)
    steps = [rows.admit(prompts, [CANARY_TOKENS] * count, [GREEDY] * count)]
    steps += [rows.step() for _ in range(CANARY_TOKENS - 1)]
    rows.clear()
    scores = decoder.score([CANARY_QUESTION], [CANARY_OPTIONS])[0]
    silent = [question for question, first in zip(CANARIES, steps[0], strict=True) if first == decoder.end_token]
    if silent or not all(map(math.isfinite, scores)):
        told = f"nothing to {silent}" if silent else f"with likelihoods {scores} to {CANARY_QUESTION!r}"
        raise CanaryFailed(f"version {version} answers {told}")


def _answerer(served: Served | None) -> Answerer | None:
    return served.decoder.answerer if served and isinstance(served.decoder, AnswererDecoder) else None
