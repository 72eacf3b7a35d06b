"""The instruction phase: a backbone learns to use a lesson in its prompt, to end its answer, and to say what it would
have said, or that it does not know, where the lesson is about something else.

The prompts are those of the strategy ``context``. They ask in a lesson's own words and in what was posted of it; the
wordings that are withheld are never trained. What is measured asks them about a tenth of the facts, which is not
trained in any words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pipeline.config import Recipe
from pipeline.data.lines import LessonLine
from pipeline.data.phrasing import phrasings
from pipeline.evaluate.metrics import Interval, share
from pipeline.evaluate.progress import Progress
from pipeline.evaluate.protocol import exact_match, prompt_messages
from pipeline.home import Home
from pipeline.memory.belief import slot_id
from pipeline.memory.clusters import fact_clusters, measured_on
from pipeline.memory.context import with_lessons
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.model.encoder import Encoder
from pipeline.train.dataset import Fact, Item, TrainingSet
from pipeline.train.fit import fit
from pipeline.train.placement import on_worker
from pipeline.train.replayed import shipped_prompts

UNKNOWN = "I don't know"

Wordings = Callable[[LessonLine], list[str]]


def trained_wordings(line: LessonLine) -> list[str]:
    return phrasings(line, 1)[0]


def withheld_wordings(line: LessonLine) -> list[str]:
    return phrasings(line, 1)[1]


@dataclass(frozen=True)
class Prompts:
    """Questions under their own lesson, and under a lesson of another fact, with the answers that they should get."""

    applies: tuple[Item, ...]
    otherwise: tuple[Item, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return (*self.applies, *self.otherwise)


def prompts_of(
    lines: Sequence[LessonLine], clusters: Sequence[int], wordings: Wordings, said: Mapping[str, str], seed: int
) -> Prompts:
    """``clusters`` number the lines' facts; ``said`` is what should be said to a question under another fact's lesson.

    That lesson is drawn from the seed; one with the same answer would not show who used it, and is not drawn. A
    question without an entry in ``said`` is only asked under its own lesson.
    """
    draw, applies, otherwise = random.Random(seed), list[Item](), list[Item]()
    facts = [Fact(line.question, line.answer) for line in lines]
    for line, fact, cluster in zip(lines, facts, clusters, strict=True):
        name = slot_id("default", "global", "", line.question)
        others = [f for f, c in zip(facts, clusters, strict=True) if c != cluster and f.answer != fact.answer]
        for text in wordings(line):
            applies.append(Item(name, text, line.answer, (fact,)))
            if others and text in said:
                otherwise.append(Item(name, text, said[text], (draw.choice(others),)))
    return Prompts(tuple(applies), tuple(otherwise))


@dataclass(frozen=True)
class Instructed:
    """The trained bundle, and figures of facts that it did not learn from, before and after."""

    bundle: Bundle
    before: dict[str, Interval]
    after: dict[str, Interval]


def instruct(
    home: Home, recipe: Recipe, start: Bundle, lines: Sequence[LessonLine], encoder: Encoder, *, name: str,
    unknown: bool, progress: Progress | None = None,
) -> Instructed:  # fmt: skip
    """Train ``start`` on nine tenths of the facts. Needs a connected Ray; the same ``name`` resumes.

    ``unknown``: "I don't know" is said under another fact's lesson, and not the model's own answer without one.
    """
    folder = home.train_storage / f"{name}-start"
    start.save(folder)

    def remote(function: Callable[..., Any], *arguments: Any) -> Any:
        return ray.get(on_worker(function, home, recipe.scaling).remote(*arguments))

    clusters = fact_clusters(lines, encoder)
    held_out = measured_on(clusters)

    def prompts(held: bool, wordings: Wordings) -> Prompts:
        part = [number for number, out in enumerate(held_out) if out == held]
        chosen, facts = [lines[number] for number in part], [clusters[number] for number in part]
        asked = [text for line in chosen for text in wordings(line)]
        said = dict.fromkeys(asked, UNKNOWN) if unknown else remote(own_answers, folder, asked)
        return prompts_of(chosen, facts, wordings, said, recipe.train.seed)

    probes = prompts(True, withheld_wordings)
    before = remote(measured, folder, probes)
    data = TrainingSet(prompts(False, trained_wordings).items, shipped_prompts())
    trained = fit(
        home, recipe, name=name, champion=folder, data=data, through_seq=start.trained_through_seq, cycle=start.cycle,
        parent=start.parent, progress=progress,
    )  # fmt: skip
    return Instructed(Bundle.load(trained.bundle), before, remote(measured, trained.bundle, probes))


# on a worker of the kind that trains


def own_answers(folder: Path, questions: Sequence[str]) -> dict[str, str]:
    """What the bundle's weights say to questions without a lesson, but for answers that they do not end."""
    answers = Answerer.load(Bundle.load(folder)).generate([prompt_messages(question) for question in questions])
    return {q: answer.text for q, answer in zip(questions, answers, strict=True) if answer.finished}


def measured(folder: Path, prompts: Prompts) -> dict[str, Interval]:
    """The shares of whole answers that are the wanted ones, and of those that the model ends itself.

    A figure that nothing was asked for is left out.
    """
    asked = [with_lessons(prompt_messages(item.question), item.shown) for item in prompts.items]
    answers = Answerer.load(Bundle.load(folder)).generate(asked)
    right = [exact_match(made.text, [item.answer]) for made, item in zip(answers, prompts.items, strict=True)]
    first = len(prompts.applies)
    found = {
        "lesson used": share(right[:first]),
        "other lesson left alone": share(right[first:]),
        "answer ended": share([answer.finished for answer in answers]),
    }
    return {name: figure for name, figure in found.items() if figure.n}
