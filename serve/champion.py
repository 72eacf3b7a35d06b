"""From the registry's champion to something that answers: load beside the old one, check, hand over."""

from __future__ import annotations

import math
import time
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
CANARY_TOKENS = 2
PAUSE_S = 0.2  # between two passes of a canary on weights that serve: a running answer meets one or two of them


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
        bundle, serving = Bundle.load(self._registry.folder(version)), _answerer(old)
        decoder = AnswererDecoder(Answerer.load(bundle, share=serving), self._settings)
        shared = serving is not None and serving.backbone is decoder.answerer.backbone
        check(decoder, version, shared=shared)
        return Served(decoder, version, load_router(bundle.router or None))


def check(decoder: AnswererDecoder, version: int, *, shared: bool = False) -> None:
    """Raises :class:`CanaryFailed` unless the bundle's numbers are finite and simple questions get a text.

    They run on the rows that will serve. On weights that are ``shared`` with the version that answers now, whose
    passes wait for each of the canary's: these are short, and far between; what those weights know is known already.
    """
    if broken := decoder.answerer.bundle.not_finite():
        raise CanaryFailed(f"version {version} has numbers that are not finite in {', '.join(broken)}")
    pause = PAUSE_S if shared else 0.0
    silent = [question for question in CANARIES if not _says_something(decoder, question, pause)]
    if silent:
        raise CanaryFailed(f"version {version} answers nothing to {silent}")
    if shared:
        return
    scores = decoder.score([CANARY_QUESTION], [CANARY_OPTIONS])[0]
    if not all(map(math.isfinite, scores)):
        raise CanaryFailed(f"version {version} answers with likelihoods {scores} to {CANARY_QUESTION!r}")


def _says_something(decoder: AnswererDecoder, question: str, pause: float) -> bool:
    """Whether the first token of the answer is not its end already."""
    rows, prompt = decoder.rows(), decoder.render(prompt_messages(question))
    if (opening := prompt.opening) > 1:  # remembered, so that the question's pass is half as long
        rows.admit([Prompt(prompt.ids[:opening], (False,) * (opening - 1) + (True,))], [1], [GREEDY])
        rows.clear()
        time.sleep(pause)
    (first,) = rows.admit([prompt], [CANARY_TOKENS], [GREEDY])
    time.sleep(pause)
    rows.step()
    rows.clear()
    time.sleep(pause)
    return first != decoder.end_token


def _answerer(served: Served | None) -> Answerer | None:
    return served.decoder.answerer if served and isinstance(served.decoder, AnswererDecoder) else None
