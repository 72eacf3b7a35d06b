"""From the registry's champion to something that answers: load beside the old one, check, hand over."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import Engine as Database

from pipeline.evaluate.protocol import Message, prompt_messages
from pipeline.home import Home
from pipeline.memory.mixture import Mixture
from pipeline.memory.router import load_router
from pipeline.model.answerer import Answerer, Generation
from pipeline.model.bundle import Bundle
from pipeline.tracking.registry import Registry, champion_version
from serve.engine import Served

CANARY_QUESTION = "What is the capital of France?"
CANARY_OPTIONS = ("Paris", "Reykjavik")
CANARY_TOKENS = 4


class NoChampion(RuntimeError):  # noqa: N818 - reads as what happened
    """There is nothing to serve yet."""


class CanaryFailed(RuntimeError):  # noqa: N818
    """A bundle loaded but does not answer sensibly."""


class AnswererDecoder:
    """The answerer in the form that the engine asks for."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer

    def generate(
        self,
        prompts: Sequence[list[Message]],
        *,
        max_new_tokens: int | None = None,
        mixtures: Sequence[Mixture | None] | None = None,
    ) -> list[Generation]:
        return self.answerer.generate(prompts, max_new_tokens=max_new_tokens, mixtures=mixtures)

    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        return self.answerer.score(questions, options)

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        return len(self.answerer.backbone.prompt(messages).ids)


class ChampionLoader:
    """Blocking; the replica runs it outside its event loop."""

    def __init__(self, home: Home, database: Database) -> None:
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
        decoder = AnswererDecoder(Answerer.load(bundle, share=_answerer(old)))
        check(decoder, version)
        return Served(decoder, version, bundle.recipe.model.max_prompt_tokens, load_router(bundle.router or None))


def check(decoder: AnswererDecoder, version: int) -> None:
    """Raises :class:`CanaryFailed` unless a simple question gets a text and finite likelihoods."""
    answer = decoder.generate([prompt_messages(CANARY_QUESTION)], max_new_tokens=CANARY_TOKENS)[0]
    scores = decoder.score([CANARY_QUESTION], [CANARY_OPTIONS])[0]
    if not answer.text.strip() or not all(map(math.isfinite, scores)):
        told = f"{answer.text!r:.40} with likelihoods {scores}"
        raise CanaryFailed(f"version {version} answers {told} to {CANARY_QUESTION!r}")


def _answerer(served: Served | None) -> Answerer | None:
    return served.decoder.answerer if served and isinstance(served.decoder, AnswererDecoder) else None
