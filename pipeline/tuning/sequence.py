"""What a recipe is worth: a sequence of update cycles, each started from the one before, measured after every cycle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ray

from pipeline.config import Recipe
from pipeline.data.lines import LessonLine, ProbeLine
from pipeline.evaluate import continual
from pipeline.evaluate.answers import CachedGenerator
from pipeline.evaluate.exam import Exam
from pipeline.evaluate.metrics import Interval
from pipeline.evaluate.protocol import exact_match
from pipeline.evaluate.seam import Reply, System, filled
from pipeline.evaluate.stream import Meter, Timing
from pipeline.evaluate.systems import SYSTEMS, Bench, make_bench
from pipeline.files import write_whole
from pipeline.home import Home
from pipeline.train.dataset import TrainingSet, line_items
from pipeline.train.fit import fit
from pipeline.train.placement import on_worker

Log = tuple[tuple[LessonLine, ...], ...]  # lessons by cycle


@dataclass(frozen=True)
class Probes:
    """Prompts beside the lessons: those whose output must stay, and those that training replays."""

    unrelated: tuple[str, ...]
    replay: tuple[str, ...]

    def exam(self, lessons: Sequence[LessonLine]) -> Exam:
        return Exam(tuple(lessons), tuple(ProbeLine(question=text) for text in self.unrelated))


@dataclass(frozen=True)
class AfterCycle:
    """``cycle`` counts from 1; ``row`` is R[cycle - 1]: the share right by the weights on each cycle's lessons."""

    cycle: int
    measures: dict[str, float]
    row: tuple[float, ...]
    bundle: str

    def saved(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def read(cls, text: str) -> AfterCycle:
        tree = json.loads(text)
        return cls(tree["cycle"], tree["measures"], tuple(tree["row"]), tree["bundle"])


Callbacks = Callable[[], Sequence[Any]]  # Ray Train's, new ones for every cycle


def run_sequence(
    home: Home,
    recipe: Recipe,
    *,
    name: str,
    champion: Path,
    log: Log,
    probes: Probes,
    before: Mapping[str, str],
    outcomes: Path,
    callbacks: Callbacks = tuple,
) -> Iterator[AfterCycle]:
    """Train and measure cycle after cycle. The same ``name`` goes on after the last cycle in ``outcomes``.

    ``before`` is what the champion says to everything that is asked (:func:`answers_of`).
    """
    bundle, rows = champion, list[tuple[float, ...]]()
    for cycle in range(1, len(log) + 1):
        file = outcomes / f"{name}-{cycle}.json"
        if not file.exists():
            after = _cycle(home, recipe, f"{name}-{cycle}", bundle, log[:cycle], probes, before, rows, callbacks())
            write_whole(file, after.saved())
        found = AfterCycle.read(file.read_text(encoding="utf-8"))
        bundle = Path(found.bundle)
        rows.append(found.row)
        yield found


def _cycle(
    home: Home,
    recipe: Recipe,
    name: str,
    start: Path,
    log: Log,
    probes: Probes,
    before: Mapping[str, str],
    rows: Sequence[tuple[float, ...]],
    callbacks: Sequence[Any],
) -> AfterCycle:
    """The last cycle of ``log``, from the bundle in ``start``; ``rows`` are R of those before."""
    trained = fit(
        home,
        recipe,
        name=name,
        champion=start,
        data=TrainingSet(line_items(log[-1], recipe.train.templates), probes.replay),
        through_seq=0,
        cycle=len(log),
        callbacks=callbacks,
    )
    asked = on_worker(_examine, home, recipe.scaling).remote(recipe, trained.bundle, log, probes, before)
    on, off, row, answer_ms = ray.get(asked)
    matrix = [[*known, *[None] * (len(log) - len(known))] for known in (*rows, row)]
    measures = objective(on, off, continual.summary(matrix)) | {"answer_ms": answer_ms}
    measures |= {key: float(trained.metrics[key]) for key in ("loss", "seconds") if key in trained.metrics}
    return AfterCycle(len(log), measures, tuple(row), str(trained.bundle))


def objective(on: Mapping[str, Interval], off: Mapping[str, Interval], cycles: Mapping[str, float]) -> dict[str, float]:
    """``objective`` and everything that goes into it, over the lessons of all cycles so far.

        objective = ( mean(on.reliability, on.generality, on.locality) + mean(off.reliability, off.retention) ) / 2

    ``on``: the weights with lesson memory and the recipe's strategy; ``off``: the weights alone. reliability is the
    share of the lessons' own questions answered with their answers, generality that of their paraphrases, locality the
    share of neighbours and retention that of unrelated prompts whose output is still the champion's. A mean leaves out
    what has no probes. off.reliability is the average accuracy over the cycles, so what later cycles forget of earlier
    ones counts. ``cycles``: the figures of R (:mod:`pipeline.evaluate.continual`). Two views are logged besides and
    decide nothing: ``learned`` = mean(on.reliability, on.generality, mean R[j][j]) and ``kept`` = mean(on.locality,
    off.retention, 1 - forgetting).
    """
    parts = {f"on_{name}": found.value for name, found in on.items()}
    parts |= {f"off_{name}": found.value for name, found in off.items()}
    parts |= {f"cycles_{name}": value for name, value in cycles.items()}

    def mean(*names: str) -> float:
        values = [parts[name] for name in names if name in parts]
        return sum(values) / max(len(values), 1)

    with_memory = mean("on_reliability", "on_generality", "on_locality")
    parts["cycles_remembered"] = 1 - max(0.0, parts["cycles_forgetting"])
    return parts | {
        "objective": (with_memory + mean("off_reliability", "off_retention")) / 2,
        "learned": mean("on_reliability", "on_generality", "cycles_learned"),
        "kept": mean("on_locality", "off_retention", "cycles_remembered"),
    }


# on a worker of the kind that trains


def answers_of(recipe: Recipe, bundle: Path, logs: Sequence[Log], probes: Probes) -> dict[str, str]:
    """What the bundle's weights say to everything that is asked about ``logs``."""
    bench = _bench(recipe, bundle)
    return {q: text for log in logs for q, text in _ask(bench.uncorrected, probes.exam(_lines(log))).items()}


def _examine(
    recipe: Recipe, bundle: Path, log: Log, probes: Probes, before: Mapping[str, str]
) -> tuple[dict[str, Interval], dict[str, Interval], list[float], float]:
    """With memory on, off, the row of R, and the median milliseconds of an answer with memory on."""
    bench = _bench(recipe, bundle)
    lines = _lines(log)
    exam, memory = probes.exam(lines), SYSTEMS["memory"](bench)
    memory.teach(lines)
    weights = _ask(bench.uncorrected, exam)
    replies = filled(Meter().ask(memory, exam.questions), weights)
    on, off = exam.score(_texts(replies), before), exam.score(weights, before)
    row = [sum(exact_match(weights[x.question], (x.answer,)) for x in part) / len(part) for part in log]
    assert isinstance(bench.answerer, CachedGenerator)
    milliseconds, _ = Timing(bench.answerer.bypassed).measure(memory, [*exam.asked()], bench.uncorrected)
    return on, off, row, median(milliseconds)


def _bench(recipe: Recipe, bundle: Path) -> Bench:
    from pipeline.model.answerer import Answerer
    from pipeline.model.bundle import Bundle

    answerer = Answerer.load(Bundle.load(bundle))
    return make_bench(recipe, answerer, answerer.bundle.router)


def _lines(log: Log) -> list[LessonLine]:
    return [line for lines in log for line in lines]


def _ask(system: System, exam: Exam) -> dict[str, str]:
    return _texts(Meter().ask(system, exam.questions))


def _texts(replies: Mapping[str, Reply]) -> dict[str, str]:
    return {question: reply.text or "" for question, reply in replies.items()}
