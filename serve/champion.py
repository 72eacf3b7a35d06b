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
PAUSE_S = 0.2  # between two passes of a canary on weights that serve: an answer that waited for one is running by then
PATIENCE_S = 1.0  # how far apart they are under a load that leaves no gap between answers
LOOK_S = 0.002


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
        bundle, serving = Bundle.load(self._registry.folder(version)), _decoder(old)
        decoder = AnswererDecoder(Answerer.load(bundle, share=serving.answerer if serving else None), self._settings)
        shares = serving is not None and serving.answerer.backbone is decoder.answerer.backbone
        check(decoder, version, beside=serving if shares else None)
        return Served(decoder, version, load_router(bundle.router or None))


def check(decoder: AnswererDecoder, version: int, *, beside: AnswererDecoder | None = None) -> None:
    """Raises :class:`CanaryFailed` unless the bundle's numbers are finite and simple questions get a text.

    They run on the rows that will serve. ``beside`` answers now on the same weights, and its passes wait for each of
    the canary's: these are few and short, and run while nothing is decoded; what those weights know is known already.
    """
    if broken := decoder.answerer.bundle.not_finite():
        raise CanaryFailed(f"version {version} has numbers that are not finite in {', '.join(broken)}")
    if silent := _silent(decoder, beside):
        raise CanaryFailed(f"version {version} answers nothing to {silent}")
    if beside is not None:
        return
    scores = decoder.score([CANARY_QUESTION], [CANARY_OPTIONS])[0]
    if not all(map(math.isfinite, scores)):
        raise CanaryFailed(f"version {version} answers with likelihoods {scores} to {CANARY_QUESTION!r}")


def _silent(decoder: AnswererDecoder, beside: AnswererDecoder | None) -> list[str]:
    """The questions to which the first token of the answer is its end already; one answer goes on for a step."""
    rows, silent = decoder.rows(), []
    prompts = [decoder.render(prompt_messages(question)) for question in CANARIES]
    beginning = prompts[0].ids[: prompts[0].opening]
    if len(beginning) > 1:  # remembered, so that a question's pass is half as long
        _wait_for_a_gap(beside)
        rows.admit([Prompt(beginning, (False,) * (len(beginning) - 1) + (True,))], [1], [GREEDY])
    for question, prompt in zip(CANARIES, prompts, strict=True):
        rows.clear()
        _wait_for_a_gap(beside)
        if rows.admit([prompt], [CANARY_TOKENS], [GREEDY]) == [decoder.end_token]:
            silent.append(question)
    _wait_for_a_gap(beside)
    rows.step()
    rows.clear()
    return silent


def _wait_for_a_gap(beside: AnswererDecoder | None) -> None:
    """Until ``beside`` decodes nothing."""
    if beside is None:
        return
    until = time.monotonic() + PATIENCE_S
    time.sleep(PAUSE_S)
    while beside.rows().rows and time.monotonic() < until:
        time.sleep(LOOK_S)


def _decoder(served: Served | None) -> AnswererDecoder | None:
    return served.decoder if served and isinstance(served.decoder, AnswererDecoder) else None
