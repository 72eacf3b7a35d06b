"""Systems that can be corrected, found by name: the product with each of its strategies, and the baselines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache as cache_once
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import MemorySettings, Recipe
from pipeline.data.lines import LessonLine
from pipeline.evaluate.answers import AnswerCache, CachedGenerator, Switch, cache_file, model_name
from pipeline.evaluate.baselines.exact_match import ExactMatch
from pipeline.evaluate.baselines.rag import Rag
from pipeline.evaluate.baselines.subject_index import SubjectIndex
from pipeline.evaluate.baselines.tfidf import TfIdf
from pipeline.evaluate.exam import first_word
from pipeline.evaluate.protocol import prompt_messages
from pipeline.evaluate.seam import Generator, Reply, System, generate

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.evaluate.baselines.grace import LastStates
    from pipeline.memory.router import Router
    from pipeline.memory.store import LessonMemory
    from pipeline.memory.strategy import Plan
    from pipeline.model.answerer import Answerer
    from pipeline.model.backbone import Backbone
    from pipeline.model.bundle import Bundle
    from pipeline.model.encoder import Encoder


class Untouched:
    """Leaves every question to the uncorrected system: what that is measured as."""

    def teach(self, lines: Sequence[LessonLine]) -> None:
        """Nothing is learned."""

    def ask(self, questions: Sequence[str]) -> list[Reply]:
        return [Reply()] * len(questions)

    def size_bytes(self) -> int:
        return 0


class Uncorrected:
    """The model as it is: lessons change nothing."""

    def __init__(self, answerer: Generator) -> None:
        self.answerer = answerer

    def teach(self, lines: Sequence[LessonLine]) -> None:
        """Nothing is learned."""

    def ask(self, questions: Sequence[str]) -> list[Reply]:
        return [Reply(text) for text in generate(self.answerer, [prompt_messages(question) for question in questions])]

    def size_bytes(self) -> int:
        return 0


class Memory:
    """The product in one process: lesson memory, strategy, answerer. Only question and answer are taught."""

    def __init__(self, memory: LessonMemory, answerer: Generator, settings: MemorySettings) -> None:
        self._memory = memory
        self._answerer = answerer
        self._settings = settings

    def teach(self, lines: Sequence[LessonLine]) -> None:
        """One by one, because a line may say that it replaces what another has taught in other words."""
        from pipeline.memory.belief import taught_event
        from pipeline.memory.rewording import overlap

        for line in lines:
            found = overlap(self._memory, line)
            replaces = found.lesson if found and found.replaced else None
            self._memory.apply([taught_event(line, self._memory.applied_seq + 1, replaces)])

    def ask(self, questions: Sequence[str]) -> list[Reply]:
        from pipeline.memory.infer import read_and_infer
        from pipeline.memory.strategy import plan
        from pipeline.memory.types import Viewer

        readings = read_and_infer(self._memory, questions, [Viewer()] * len(questions), self._settings.gate)
        plans = [
            plan(self._settings.strategy, question, prompt_messages(question), reading, self._settings)
            for question, reading in zip(questions, readings, strict=True)
        ]
        texts = decoded(self._answerer, questions, plans)
        return [
            Reply(
                text=text,
                from_memory=text is not None and made.rests_on_lessons(text),
                proposal=reading.slots[0].answer if reading.slots else None,
                confidence=reading.gate,
            )
            for made, text, reading in zip(plans, texts, readings, strict=True)
        ]

    def size_bytes(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            self._memory.save(Path(folder))
            return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def decoded(answerer: Generator, questions: Sequence[str], plans: Sequence[Plan]) -> list[str | None]:
    """The plans' answers; ``None`` where the bare question is to be asked."""
    texts = [plan.text for plan in plans]
    for mixed in (False, True):
        chosen = [
            i
            for i, plan in enumerate(plans)
            if plan.text is None
            and bool(plan.mixture) == mixed
            and (mixed or plan.messages != prompt_messages(questions[i]))
        ]
        prompts = [plans[i].messages or [] for i in chosen]
        made = generate(answerer, prompts, [plans[i].mixture for i in chosen] if mixed else ())
        for i, text in zip(chosen, made, strict=True):
            texts[i] = text
    return texts


@dataclass(frozen=True)
class Bench:
    """What systems are built from: one answerer, shared, and a way to make an empty lesson memory.

    ``model`` is the answerer itself, for systems that look inside it or change it; ``identity`` names everything that
    decides what it answers.
    """

    answerer: Generator
    uncorrected: Uncorrected
    settings: MemorySettings
    empty_memory: Callable[[], LessonMemory]
    encoder: Callable[[], Encoder]
    model: Answerer | None = None
    first_token: Callable[[str], str] = first_word
    identity: str = ""

    def whole_model(self) -> Answerer:
        if self.model is None:
            raise ValueError("this system needs the model's own states or weights, and the bench has only a generator")
        return self.model

    @cached_property
    def states(self) -> LastStates:
        """Shared, so that a question's state is computed once for all orders."""
        from pipeline.evaluate.baselines.grace import LastStates

        return LastStates(self.whole_model().backbone)


def _memory(bench: Bench, **changes: str) -> Memory:
    settings = bench.settings.model_copy(update=changes)
    return Memory(bench.empty_memory(), bench.answerer, settings)


SYSTEMS: dict[str, Callable[[Bench], System]] = {
    "uncorrected": lambda _bench: Untouched(),
    "memory": _memory,  # the recipe's strategy
    "adaptive": partial(_memory, strategy="adaptive"),
    "copy": partial(_memory, strategy="copy"),
    "context": partial(_memory, strategy="context"),
    "infer": partial(_memory, strategy="infer"),
    "weights": partial(_memory, strategy="weights"),
    "exact_match": lambda _bench: ExactMatch(),
    "tfidf": lambda _bench: TfIdf(),
    "subject_index": lambda _bench: SubjectIndex(),
    "rag": lambda bench: Rag(bench.answerer, bench.encoder()),
    "grace": lambda bench: _grace(bench),
    "fine_tuning": lambda bench: _trained("FineTuning", bench),
    "replay_fine_tuning": lambda bench: _trained("ReplayFineTuning", bench),
    "lora_replay": lambda bench: _trained("LoraReplay", bench),
}

# Systems that train for minutes per hundred lessons: the length up to which they are measured, in one order.
LIMITED = dict.fromkeys(("fine_tuning", "replay_fine_tuning", "lora_replay"), 100)


def _grace(bench: Bench) -> System:
    from pipeline.evaluate.baselines.grace import Grace

    return Grace(bench.states)


def _trained(kind: str, bench: Bench) -> System:
    from pipeline.evaluate.baselines import fine_tuning

    system: System = getattr(fine_tuning, kind)(bench.whole_model())
    return system


def make_bench(
    recipe: Recipe, answerer: Answerer, router: Mapping[str, Tensor] | None = None, cache: AnswerCache | None = None
) -> Bench:
    """A bench around a loaded answerer; ``router`` is the bundle's, empty or ``None`` for the shipped one.

    What the answerer decodes is kept in memory, and in ``cache`` where one is given; what encoder and router make of
    texts is kept in memory.
    """
    generator = CachedGenerator(answerer, cache)

    encoder = cache_once(partial(_known_encoder, recipe, generator.kept))
    known_router = cache_once(partial(_known_router, router, generator.kept))
    empty_memory = partial(_empty_memory, recipe, encoder, known_router)
    first_token = partial(_first_token, answerer.backbone)
    return Bench(generator, Uncorrected(generator), recipe.memory, empty_memory, encoder, answerer, first_token)


def load_bench(recipe: Recipe, bundle: Bundle) -> Bench:
    """The bundle's answerer behind the user's answer cache."""
    from pipeline.model.answerer import Answerer

    answerer = Answerer.load(bundle)
    model = model_name(answerer)
    bench = make_bench(recipe, answerer, bundle.router, AnswerCache(cache_file(), model))
    return replace(bench, identity=f"{model}/{recipe.model.encoder}/{recipe.memory.model_dump_json()}")


def _first_token(backbone: Backbone, text: str) -> str:
    return repr(backbone.answer_ids(text)[:1])


def _empty_memory(recipe: Recipe, encoder: Callable[[], Encoder], router: Callable[[], Router]) -> LessonMemory:
    from pipeline.memory.store import LessonMemory

    return LessonMemory(encoder(), router(), recipe.memory)


def _known_encoder(recipe: Recipe, kept: Switch) -> Encoder:
    from pipeline.evaluate.known import KnownVectors
    from pipeline.model.encoder import load_encoder

    return KnownVectors(load_encoder(recipe.model.encoder), kept)


def _known_router(tensors: Mapping[str, Tensor] | None, kept: Switch) -> Router:
    from pipeline.evaluate.known import KnownPairs
    from pipeline.memory.router import TrainedRouter, load_router

    router = load_router(tensors or None)
    return TrainedRouter(router.tensors, KnownPairs(router.pair_encoders, kept))
