"""A user's check of the update: one cycle on lessons of one's own, in a home of its own, without lesson memory.

Only question and answer of a line are trained. Its paraphrases and neighbours are asked afterwards, and every figure
is whole strings of free generation, lesson memory and router off:

- ``learned``: questions answered with their lessons' answers
- ``paraphrase``: the same for the paraphrases
- ``neighbour``, ``unrelated``: outputs that are the untrained champion's, character for character
- ``retention_kept``: retention probes that were right before and still are
- ``seconds``: from the start of the training workers to the trained bundle
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Recipe
from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, ProbeLine, RetentionProbe, read_lines
from pipeline.evaluate.answers import AnswerCache, Store, cache_file, model_name
from pipeline.evaluate.exam import Exam, judge
from pipeline.evaluate.gate import Evidence, Pairs, Verdict, decide
from pipeline.evaluate.load import circumstances, watched
from pipeline.evaluate.metrics import Interval, share
from pipeline.evaluate.progress import batches
from pipeline.evaluate.protocol import MAX_NEW_TOKENS, prompt_messages
from pipeline.evaluate.result import Result
from pipeline.evaluate.retention import kept, right
from pipeline.evaluate.seam import Reply
from pipeline.evaluate.shared import SharedAnswerer
from pipeline.home import Home
from pipeline.memory.belief import fold, taught_event
from pipeline.memory.types import question_key

SHOWN = {"reliability": "learned", "generality": "paraphrase", "locality": "neighbour", "retention": "unrelated"}
ASKED_AT_ONCE = 128

Say = Callable[[str, int, int], None]  # (stage, total, done)


class CheckError(ValueError):
    """The check cannot be made as it was asked for; the message says what to change."""


@dataclass(frozen=True)
class Checked:
    """What one model answered."""

    texts: dict[str, str]  # by question
    retention: tuple[bool, ...]


def check_update(
    home: Home, recipe: Recipe, lessons: Sequence[LessonLine], probes: Sequence[ProbeLine] | None, say: Say
) -> Result:
    """Train one cycle in ``home`` (an empty folder) and measure it. Needs a connected Ray.

    ``probes`` are unrelated prompts; default: the project's own.
    """
    from pipeline.model.answerer import Answerer
    from pipeline.model.bundle import Bundle

    if not lessons:
        raise CheckError("there is no lesson in the file: one JSON object a line, with question and answer")
    began = circumstances()
    champion = Bundle.initial(recipe)
    started = time.monotonic()
    with watched() as others:
        trained, seconds = _train(home, recipe, champion, lessons, say)
    unrelated = probes if probes is not None else read_lines(example("replay/unrelated.jsonl"), ProbeLine)
    exam = Exam(tuple(lessons), tuple(unrelated))
    retention = read_lines(example("retention/probes.jsonl"), RetentionProbe)
    base = Answerer.load(champion)
    store = Store(AnswerCache(cache_file(), model_name(base)))
    before = _answers(SharedAnswerer(base, store), exam, retention, lambda *told: say("asking the champion", *told))
    challenger = SharedAnswerer(Answerer.load(Bundle.load(trained), share=base), store)
    corrections = exam.corrections()
    guesses = {question: corrections.get(question_key(question), text) for question, text in before.texts.items()}
    after = _answers(challenger, exam, retention, lambda *told: say("asking the challenger", *told), guesses)
    figures, verdict = figures_of(exam, before, after), _verdict(exam, before, after, recipe)
    measures: dict[str, Any] = {name: figure.value for name, figure in figures["challenger"].items()}
    measures |= {"seconds": seconds, "seconds_with_measuring": time.monotonic() - started}
    measures |= {"lessons": len(lessons), "probes": len(unrelated), "seed": recipe.train.seed, **began}
    measures |= {"others_cores": round(others.cores, 2), "promoted": verdict.promoted, "reasons": verdict.reasons}
    measures |= {"train": recipe.train.model_dump(mode="json"), "scaling": recipe.scaling.model_dump(mode="json")}
    length = str(len(lessons))
    return Result(measures=measures, systems={name: {length: found} for name, found in figures.items()})


def _train(home: Home, recipe: Recipe, champion: Any, lessons: Sequence[LessonLine], say: Say) -> tuple[Path, float]:
    """The trained bundle's folder, and the seconds that it took."""
    from pipeline.train.dataset import TrainingSet, lesson_items
    from pipeline.train.fit import fit
    from pipeline.train.replayed import shipped_prompts

    folder = home.create().root / "champion"
    champion.save(folder)
    taught = fold(taught_event(line, seq) for seq, line in enumerate(lessons, 1))
    data = TrainingSet(lesson_items(taught, recipe.train.templates, dict.fromkeys(taught, ())), shipped_prompts())
    say("training", recipe.train.epochs, 0)
    started = time.monotonic()
    found = fit(
        home, recipe, name="check", champion=folder, data=data, through_seq=len(lessons), cycle=1,
        progress=lambda total, done: say("training", total, done),
    )  # fmt: skip
    return found.bundle, time.monotonic() - started


def _answers(
    model: SharedAnswerer,
    exam: Exam,
    retention: Sequence[RetentionProbe],
    progress: Callable[[int, int], None],
    guesses: Mapping[str, str] | None = None,
) -> Checked:
    questions = sorted(exam.questions, key=lambda question: (len(question), question))
    everything = len(questions) + len(retention)
    texts: dict[str, str] = {}
    for part in batches(questions, ASKED_AT_ONCE, lambda _total, done: progress(everything, done)):
        prompts = [prompt_messages(question) for question in part]
        guessed = [guesses[question] for question in part] if guesses else None
        found = model.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, guesses=guessed)
        texts |= zip(part, (answer.text for answer in found), strict=True)
    outcomes = right(model, retention, progress=lambda _total, done: progress(everything, len(questions) + done))
    return Checked(texts, tuple(outcomes))


def figures_of(exam: Exam, before: Checked, after: Checked) -> dict[str, dict[str, Interval]]:
    """{challenger, champion: {figure: share}}; a figure without questions is left out."""
    found: dict[str, dict[str, Interval]] = {}
    for name, model in (("challenger", after), ("champion", before)):
        outcomes = _outcomes(exam, before, model)
        found[name] = {shown: share(outcomes[metric]) for metric, shown in SHOWN.items() if metric in outcomes}
        found[name]["retention_kept"] = kept(before.retention, model.retention)
    return found


def _outcomes(exam: Exam, before: Checked, model: Checked) -> dict[str, list[bool]]:
    replies = {question: Reply(text, None) for question, text in model.texts.items()}
    judged = judge(exam.asked(), replies, before.texts)
    return {metric: [right for _, right in outcomes] for metric, outcomes in judged.items()}


def _verdict(exam: Exam, before: Checked, after: Checked, recipe: Recipe) -> Verdict:
    """What the gate would decide on the same answers, with every probe counted."""
    old, new = _outcomes(exam, before, before), _outcomes(exam, before, after)
    found = Evidence(
        retention=Pairs(before.retention, after.retention),
        unrelated=Pairs.identity(new.get("retention", [])),
        new_lessons=Pairs(tuple(old["reliability"]), tuple(new["reliability"])),
    )
    return decide(found, recipe.gate)
