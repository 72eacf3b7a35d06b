"""A Ray Tune search: which memory strategy and which step size learn most and cost least.

A trial is a small driver (a tenth of a CPU) that trains with :func:`pipeline.train.fit.fit` and has the result
measured on a worker of the kind that trains. Everything lies in ``AGM_HOME/tune/<name>``; the same name resumes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipeline.config import Recipe, ScalingSettings
from pipeline.data.lines import LessonLine, ProbeLine
from pipeline.evaluate.exam import Exam
from pipeline.evaluate.metrics import Interval
from pipeline.evaluate.progress import Progress, batches, relayed
from pipeline.evaluate.seam import System
from pipeline.evaluate.stream import BATCH
from pipeline.evaluate.systems import SYSTEMS, make_bench
from pipeline.home import Home, worker_home
from pipeline.tracking import logging as tracking
from pipeline.train.dataset import TrainingSet, line_items
from pipeline.train.fit import fit
from pipeline.train.placement import on_worker, require_room, worker_resources

DRIVER_CPUS = 0.1  # a trial's driver waits for its workers nearly all the time
STRATEGIES = ("adaptive", "copy", "context", "weights")
OPTIMIZERS = ("slot_adam", "adam", "rmsprop", "sgd")  # the first for memory slots alone
RATE_SPAN = 10.0  # learning rates from a tenth of the recipe's to ten times it
ASKED_FILE, OUTCOMES, TRIALS_FILE, RECIPE_FILE, PLOT_FILE = (
    "search.json", "outcomes", "trials.json", "recipe.yaml", "learned_against_kept.png",
)  # fmt: skip


class SearchError(RuntimeError):
    """A search failed, was interrupted, or does not go with the one of the same name."""


@dataclass(frozen=True)
class Search:
    """What is searched, and what every trial is measured on."""

    name: str
    recipe: Recipe
    champion: Path  # the bundle that every trial starts from
    lessons: tuple[LessonLine, ...]
    unrelated: tuple[str, ...]  # prompts whose output must stay
    replay: tuple[str, ...]
    trials: int = 8
    seed: int = 0
    optimizers: bool = False

    def space(self) -> dict[str, Any]:
        """Dotted fields of the recipe."""
        rate = self.recipe.train.learning_rate
        space: dict[str, Any] = {
            "memory.strategy": tune.choice(STRATEGIES),
            "train.learning_rate": tune.loguniform(rate / RATE_SPAN, rate * RATE_SPAN),
        }
        usable = OPTIMIZERS if self.recipe.train.method == "memory" else OPTIMIZERS[1:]
        return space | ({"train.optimizer": tune.choice(usable)} if self.optimizers else {})

    def training_set(self) -> TrainingSet:
        """The lessons in their trained phrasings, named as the lesson memory names them."""
        return TrainingSet(line_items(self.lessons, self.recipe.train.templates), self.replay)

    def exam(self) -> Exam:
        return Exam(self.lessons, tuple(ProbeLine(question=text) for text in self.unrelated))

    def asked(self) -> dict[str, Any]:
        """What a resumed search must agree on."""
        lessons = [line.model_dump(mode="json") for line in self.lessons]
        settings = {name: getattr(self, name) for name in ("trials", "seed", "optimizers")}
        return {"recipe": self.recipe.model_dump(mode="json"), "lessons": lessons, **settings}


@dataclass(frozen=True)
class Trial:
    """One point of the search and everything that was measured there."""

    id: str
    changes: dict[str, Any]
    measures: dict[str, float]

    @property
    def objective(self) -> float:
        return self.measures["objective"]


@dataclass(frozen=True)
class Found:
    """The trials, best first, and where the best one's recipe lies."""

    trials: tuple[Trial, ...]
    recipe: Path
    folder: Path


def search(home: Home, wanted: Search, *, progress: Progress | None = None) -> Found:
    """Run or resume the search. Needs a connected Ray and an initialised home."""
    folder = home.root / "tune" / wanted.name
    require_room(wanted.recipe.scaling)
    _claim(folder, wanted)
    outcomes = folder / OUTCOMES  # counted as they appear: Tune's own callbacks would have to survive pickling
    params = {"trials": wanted.trials, "seed": wanted.seed, "lessons": len(wanted.lessons)}
    with (
        tracking.run(home, f"tune {wanted.name}", params=params) as parent,
        relayed(lambda: (wanted.trials, len(list(outcomes.glob("*.json")))), progress),
    ):
        trials = _completed(_tuner(home, wanted, folder).fit(), wanted)
        for trial in trials:
            with tracking.run(home, f"trial {trial.id}", params=trial.changes, parent=parent.id) as child:
                child.metrics(trial.measures)
        found = _written(folder, wanted, trials)
        parent.metrics(found.trials[0].measures)
        for file in (RECIPE_FILE, TRIALS_FILE, PLOT_FILE):
            parent.artifact(folder / file)
    return found


def objective(on: Mapping[str, Interval], off: Mapping[str, Interval]) -> dict[str, float]:
    """``objective`` and everything that goes into it.

        objective = ( mean(on.reliability, on.generality, on.locality) + mean(off.reliability, off.retention) ) / 2

    ``on``: the trial's weights with lesson memory and the trial's strategy; ``off``: its weights alone. reliability is
    the share of the lessons' own questions answered with their answers, generality that of their paraphrases, locality
    the share of neighbours and retention that of unrelated prompts whose output is still the champion's. A mean leaves
    out what has no probes. Two views are logged besides and decide nothing: ``learned`` = mean(on.reliability,
    on.generality, off.reliability) and ``kept`` = mean(on.locality, off.retention).
    """
    parts = {f"on_{name}": found.value for name, found in on.items()}
    parts |= {f"off_{name}": found.value for name, found in off.items()}

    def mean(*names: str) -> float:
        values = [parts[name] for name in names if name in parts]
        return sum(values) / max(len(values), 1)

    with_memory = mean("on_reliability", "on_generality", "on_locality")
    return parts | {
        "objective": (with_memory + mean("off_reliability", "off_retention")) / 2,
        "learned": mean("on_reliability", "on_generality", "off_reliability"),
        "kept": mean("on_locality", "off_retention"),
    }


def concurrent_trials(scaling: ScalingSettings, resources: Mapping[str, float]) -> int:
    """How many trials fit at once, drivers and workers together; never so many that drivers starve all workers."""
    workers = max(scaling.workers, 1)
    needed = {kind: amount * workers for kind, amount in worker_resources(scaling).items()}
    needed["CPU"] += DRIVER_CPUS
    return max(1, min(int(resources.get(kind, 0) / amount + 1e-9) for kind, amount in needed.items()))


# a trial


def run_trial(changes: dict[str, Any], wanted: Search, before: dict[str, str]) -> None:
    """Tune's function: train with ``changes`` to the recipe, measure, report."""
    home = worker_home()
    recipe = wanted.recipe.with_changes(changes)
    trial_id = tune.get_context().get_trial_id()
    name = f"tune-{wanted.name}-{trial_id}"
    trained = fit(
        home,
        recipe,
        name=name,
        champion=wanted.champion,
        data=wanted.training_set(),
        through_seq=0,
        cycle=0,
        callbacks=[TuneReportCallback()],
    )
    measured = ray.get(on_worker(measure, home, recipe.scaling).remote(recipe, trained.bundle, wanted, before))
    measured |= {name: float(trained.metrics[name]) for name in ("loss", "seconds") if name in trained.metrics}
    shutil.rmtree(home.train_storage / name)  # the recipe is what a search is for
    outcomes = home.root / "tune" / wanted.name / OUTCOMES
    outcomes.mkdir(parents=True, exist_ok=True)
    (outcomes / f"{trial_id}.json").write_text(json.dumps(measured), encoding="utf-8")
    tune.report(measured)


def measure(recipe: Recipe, bundle: Path, wanted: Search, before: dict[str, str]) -> dict[str, float]:
    """The trial's bundle with lesson memory on and off."""
    bench = make_bench(recipe, *_load(bundle, recipe.scaling))
    exam, memory = wanted.exam(), SYSTEMS["memory"](bench)
    memory.teach(wanted.lessons)
    off = exam.score(_ask(bench.uncorrected, exam), before)
    on = exam.score(_ask(memory, exam), before)
    return objective(on, off)


def champion_answers(wanted: Search) -> dict[str, str]:
    """What the champion says to everything that the trials are asked."""
    bench = make_bench(wanted.recipe, *_load(wanted.champion, wanted.recipe.scaling))
    return _ask(bench.uncorrected, wanted.exam())


def _load(bundle: Path, scaling: ScalingSettings) -> tuple[Any, Any]:
    import torch

    from pipeline.model.answerer import Answerer
    from pipeline.model.bundle import Bundle

    torch.set_num_threads(scaling.threads_per_worker)
    answerer = Answerer.load(Bundle.load(bundle))
    return answerer, answerer.bundle.router


def _ask(system: System, exam: Exam) -> dict[str, str]:
    questions = exam.questions
    replies = (
        (q, reply) for part in batches(questions, BATCH) for q, reply in zip(part, system.ask(part), strict=True)
    )
    return {question: reply.text for question, reply in replies}


# the search


def _claim(folder: Path, wanted: Search) -> None:
    """A folder belongs to one search: the same one may go on in it, another may not."""
    asked = folder / ASKED_FILE
    if (folder / RECIPE_FILE).exists():
        raise SearchError(f"the search {wanted.name!r} is finished: {folder / RECIPE_FILE}; choose another name")
    if asked.exists() and json.loads(asked.read_text(encoding="utf-8")) != wanted.asked():
        raise SearchError(f"{folder} holds a search with other lessons, recipe or options: choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    asked.write_text(json.dumps(wanted.asked(), ensure_ascii=False), encoding="utf-8")


def _tuner(home: Home, wanted: Search, folder: Path) -> tune.Tuner:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # MLflow has the figures
    scaling = wanted.recipe.scaling
    before = ray.get(on_worker(champion_answers, home, scaling).remote(wanted))
    trainable = tune.with_parameters(run_trial, wanted=wanted, before=before)
    trainable = tune.with_resources(trainable, {"cpu": DRIVER_CPUS})
    if tune.Tuner.can_restore(str(folder)):
        return tune.Tuner.restore(str(folder), trainable, param_space=wanted.space(), restart_errored=True)
    limit = concurrent_trials(scaling, ray.available_resources())
    generator = BasicVariantGenerator(max_concurrent=limit, random_state=wanted.seed)
    return tune.Tuner(
        trainable,
        param_space=wanted.space(),
        tune_config=tune.TuneConfig(num_samples=wanted.trials, search_alg=generator),
        run_config=tune.RunConfig(name=wanted.name, storage_path=str(folder.parent), verbose=0),
    )


def _completed(results: Any, wanted: Search) -> list[Trial]:
    """Every trial with its measures; a failed or missing one is an error that says how to go on."""
    again = f"the same name ({wanted.name}) goes on with the others"
    failed = [result for result in results if result.error is not None]
    if failed:
        raise SearchError(f"{len(failed)} of {wanted.trials} trials failed; {again}. The first: {failed[0].error}")
    done = [result for result in results if "objective" in (result.metrics or {})]
    if len(done) < wanted.trials:
        raise SearchError(f"interrupted after {len(done)} of {wanted.trials} trials; {again}")
    names = {"loss", "seconds", "objective", "learned", "kept"}
    return [
        Trial(
            result.metrics["trial_id"],
            dict(result.config),
            {k: float(v) for k, v in result.metrics.items() if k in names or k.startswith(("on_", "off_"))},
        )
        for result in done
    ]


def _written(folder: Path, wanted: Search, trials: list[Trial]) -> Found:
    """Trials, plot, and last the recipe, whose presence says that the search is finished."""
    ranked = tuple(sorted(trials, key=lambda trial: -trial.objective))  # stable: of equals the first
    rows = [{"trial": t.id, "objective": t.objective, "changes": t.changes, "measures": t.measures} for t in ranked]
    (folder / TRIALS_FILE).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    plot(ranked, folder / PLOT_FILE)
    wanted.recipe.with_changes(ranked[0].changes).write(folder / RECIPE_FILE)
    return Found(ranked, folder / RECIPE_FILE, folder)


def plot(trials: tuple[Trial, ...], path: Path) -> None:
    """Learned against kept, one colour per strategy; the best trial is ringed."""
    from matplotlib.figure import Figure

    from pipeline.evaluate.plots import COLOURS

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for strategy, colour in zip(STRATEGIES, COLOURS, strict=False):
        points = [t.measures for t in trials if t.changes["memory.strategy"] == strategy]
        axes.scatter([p["kept"] for p in points], [p["learned"] for p in points], color=colour, label=strategy)
    best = trials[0].measures
    axes.scatter([best["kept"]], [best["learned"]], s=160, facecolors="none", edgecolors="black", label="best")
    axes.set(xlabel="kept", ylabel="learned", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
