"""A Ray Tune search: which memory strategy, method and step sizes learn most over a sequence of cycles and cost least.

A trial is a small driver (a tenth of a CPU) that trains with :func:`pipeline.train.fit.fit`, cycle after cycle, and has
each cycle's bundle measured on a worker of the kind that trains. Everything lies in ``AGM_HOME/tune/<name>``; the same
name resumes, with the cycles that are measured as they are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipeline.config import Recipe, ScalingSettings
from pipeline.evaluate.progress import Progress, relayed
from pipeline.home import Home, worker_home
from pipeline.tracking import logging as tracking
from pipeline.train.placement import on_worker, require_room, worker_resources
from pipeline.tuning.plots import PLOT_FILE, plot
from pipeline.tuning.sequence import AfterCycle, Log, Probes, answers_of, run_sequence
from pipeline.tuning.space import Space

DRIVER_CPUS = 0.1  # a trial's driver waits for its workers nearly all the time
HALVING = 3  # ASHA lets a third of the trials that reached a cycle go beyond it
REFUSED = 1.0  # taken from the objective of a trial that is slower than it may be: behind every one that is not
ASKED_FILE, OUTCOMES, TRIALS_FILE, RECIPE_FILE, CHECK_FILE, BEST = (
    "search.json", "outcomes", "trials.json", "recipe.yaml", "check.json", "best",
)  # fmt: skip

SearcherName = Literal["random", "grid", "model"]


class SearchError(RuntimeError):
    """A search failed, was interrupted, or does not go with the one of the same name."""


@dataclass(frozen=True)
class Search:
    """What is searched, and what every trial is measured on."""

    name: str
    recipe: Recipe
    champion: Path  # the bundle that every trial starts from
    log: Log  # the lessons of the cycles that trials go through
    check: Log  # those of cycles that no trial sees: the winner against the recipe that the search started from
    probes: Probes
    space: Space
    searcher: SearcherName = "random"
    trials: int = 8  # of a grid: as many as it has points
    early_stop: bool = True
    max_answer_ms: float | None = None
    seed: int = 0

    @property
    def points(self) -> int:
        return self.space.size() if self.searcher == "grid" else self.trials

    @property
    def steps(self) -> int:
        """Cycles to train and measure, if no trial is stopped."""
        return self.points * len(self.log) + 2 * len(self.check)

    def recipe_at(self, point: Mapping[str, Any]) -> Recipe:
        return self.recipe.with_changes(self.space.changes(point, self.recipe))

    def slow(self, after: AfterCycle) -> bool:
        """Whether an answer takes longer than it may."""
        return self.max_answer_ms is not None and after.measures["answer_ms"] > self.max_answer_ms

    def asked(self) -> dict[str, Any]:
        """What a resumed search must agree on."""
        settings = ("searcher", "trials", "early_stop", "max_answer_ms", "seed")
        logs = {name: [[line.model_dump(mode="json") for line in lines] for lines in getattr(self, name)]
                for name in ("log", "check")}  # fmt: skip
        plain = {"recipe": self.recipe.model_dump(mode="json"), "space": self.space.described(), **logs}
        return plain | {name: getattr(self, name) for name in settings}


@dataclass(frozen=True)
class Trial:
    """One point of the search and everything that was measured there, cycle after cycle."""

    id: str
    point: dict[str, Any]
    changes: dict[str, Any]
    cycles: tuple[AfterCycle, ...]

    @property
    def measures(self) -> dict[str, float]:
        """After the last cycle that the trial reached."""
        return self.cycles[-1].measures

    @property
    def objective(self) -> float:
        return self.measures["objective"]

    @property
    def best_cycle(self) -> AfterCycle:
        """Where the objective stood highest; of equals the later one, which has learned more."""
        return max(self.cycles, key=lambda after: (after.measures["objective"], after.cycle))

    def row(self) -> dict[str, Any]:
        told = {"trial": self.id, "objective": self.objective, "changes": self.changes, "measures": self.measures}
        return told | {"cycles": len(self.cycles), "R": [after.row for after in self.cycles]}


@dataclass(frozen=True)
class Found:
    """The trials, best first, where the best one's recipe lies, and how it and the old recipe do on unseen cycles."""

    trials: tuple[Trial, ...]
    recipe: Path
    folder: Path
    check: dict[str, dict[str, float]]


def search(home: Home, wanted: Search, *, progress: Progress | None = None) -> Found:
    """Run or resume the search. Needs a connected Ray and an initialised home."""
    folder = home.root / "tune" / wanted.name
    require_room(wanted.recipe.scaling)
    _claim(folder, wanted)
    outcomes = folder / OUTCOMES  # counted as they appear: Tune's own callbacks would have to survive pickling
    params = {"trials": wanted.points, "searcher": wanted.searcher, "seed": wanted.seed, "cycles": len(wanted.log)}
    with (
        tracking.run(home, f"tune {wanted.name}", params=params) as parent,
        relayed(lambda: (wanted.steps, len(list(outcomes.glob("*.json")))), progress),
    ):
        before = _before(home, wanted)
        trials = _completed(_tuner(wanted, folder, before).fit(), wanted, outcomes)
        for trial in trials:
            with tracking.run(home, f"trial {trial.id}", params=trial.changes, parent=parent.id) as child:
                for after in trial.cycles:
                    child.metrics(after.measures, step=after.cycle)
        ranked = ranking(trials, wanted)
        check = _checked(home, wanted, ranked[0], before, outcomes)
        found = _written(home, folder, wanted, ranked, check)
        parent.metrics(found.trials[0].measures)
        parent.metrics({f"check_{name}_objective": figures["objective"] for name, figures in check.items()})
        for file in (RECIPE_FILE, TRIALS_FILE, CHECK_FILE, PLOT_FILE):
            parent.artifact(folder / file)
    return found


def ranking(trials: Sequence[Trial], wanted: Search) -> tuple[Trial, ...]:
    """Best first: those that went through all cycles, fast enough ones before slow ones, by objective; then those that
    were stopped. Of equals the first."""

    def place(trial: Trial) -> tuple[int, bool, float]:
        return -len(trial.cycles), wanted.slow(trial.cycles[-1]), -trial.objective

    return tuple(sorted(trials, key=place))


def concurrent_trials(scaling: ScalingSettings, resources: Mapping[str, float]) -> int:
    """How many trials fit at once, drivers and workers together; never so many that drivers starve all workers."""
    workers = max(scaling.workers, 1)
    needed = {kind: amount * workers for kind, amount in worker_resources(scaling).items()}
    needed["CPU"] += DRIVER_CPUS
    return max(1, min(int(resources.get(kind, 0) / amount + 1e-9) for kind, amount in needed.items()))


# a trial


class CompleteReports(TuneReportCallback):
    """Ray Train's own reports, with the figures of the last measured cycle: searchers want a metric in every report."""

    def __init__(self, known: dict[str, float]) -> None:
        super().__init__()
        self._known = known

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        super().after_report(run_context, [reported | self._known for reported in metrics], checkpoint)


def run_trial(point: dict[str, Any], wanted: Search, before: dict[str, str]) -> None:
    """Tune's function: train with the point's changes to the recipe, measure, report, cycle after cycle."""
    home = worker_home()
    known = {"cycle": 0.0, "objective": 0.0}
    cycles = run_sequence(
        home,
        wanted.recipe_at(point),
        name=f"{_prefix(wanted)}{tune.get_context().get_trial_id()}",
        champion=wanted.champion,
        log=wanted.log,
        probes=wanted.probes,
        before=before,
        outcomes=home.root / "tune" / wanted.name / OUTCOMES,
        callbacks=lambda: [CompleteReports(dict(known))],
    )
    for after in cycles:
        known |= {"cycle": after.cycle, "objective": after.measures["objective"] - wanted.slow(after) * REFUSED}
        tune.report(after.measures | known)


def _prefix(wanted: Search) -> str:
    return f"tune-{wanted.name}-"


# the search


def _claim(folder: Path, wanted: Search) -> None:
    """A folder belongs to one search: the same one may go on in it, another may not."""
    asked = folder / ASKED_FILE
    if (folder / RECIPE_FILE).exists():
        raise SearchError(f"the search {wanted.name!r} is finished: {folder / RECIPE_FILE}; choose another name")
    if asked.exists() and json.loads(asked.read_text(encoding="utf-8")) != json.loads(json.dumps(wanted.asked())):
        raise SearchError(f"{folder} holds a search with other lessons, recipe or options: choose another name")
    (folder / OUTCOMES).mkdir(parents=True, exist_ok=True)
    asked.write_text(json.dumps(wanted.asked(), ensure_ascii=False), encoding="utf-8")


def _before(home: Home, wanted: Search) -> dict[str, str]:
    task = on_worker(answers_of, home, wanted.recipe.scaling)
    found: dict[str, str] = ray.get(
        task.remote(wanted.recipe, wanted.champion, [wanted.log, wanted.check], wanted.probes)
    )
    return found


def _tuner(wanted: Search, folder: Path, before: dict[str, str]) -> tune.Tuner:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # MLflow has the figures
    trainable = tune.with_parameters(run_trial, wanted=wanted, before=before)
    trainable = tune.with_resources(trainable, {"cpu": DRIVER_CPUS})
    space = wanted.space.grid() if wanted.searcher == "grid" else wanted.space.domains()
    if tune.Tuner.can_restore(str(folder)):
        return tune.Tuner.restore(str(folder), trainable, param_space=space, restart_errored=True)
    limit = concurrent_trials(wanted.recipe.scaling, ray.available_resources())
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            num_samples=1 if wanted.searcher == "grid" else wanted.trials,
            search_alg=_searcher(wanted, limit),
            scheduler=_scheduler(wanted),
        ),
        run_config=tune.RunConfig(name=wanted.name, storage_path=str(folder.parent), verbose=0),
    )


def _searcher(wanted: Search, limit: int) -> Searcher | SearchAlgorithm:
    if wanted.searcher != "model":
        return BasicVariantGenerator(max_concurrent=limit, random_state=wanted.seed)
    from ray.tune.search.optuna import OptunaSearch

    return ConcurrencyLimiter(OptunaSearch(seed=wanted.seed), max_concurrent=limit)


def _scheduler(wanted: Search) -> TrialScheduler:
    if not wanted.early_stop or len(wanted.log) < 2:
        return FIFOScheduler()
    return ASHAScheduler(time_attr="cycle", max_t=len(wanted.log), grace_period=1, reduction_factor=HALVING)


def _completed(results: Any, wanted: Search, outcomes: Path) -> list[Trial]:
    """Every trial with its measured cycles; a failed or missing one is an error that says how to go on."""
    again = f"the same name ({wanted.name}) goes on with the others"
    failed = [result for result in results if result.error is not None]
    if failed:
        raise SearchError(f"{len(failed)} of {wanted.points} trials failed; {again}. The first: {failed[0].error}")
    done = [result for result in results if (result.metrics or {}).get("cycle", 0) >= 1]
    if len(done) < wanted.points:
        raise SearchError(f"interrupted after {len(done)} of {wanted.points} trials; {again}")
    return [_trial(dict(result.config), result.metrics["trial_id"], wanted, outcomes) for result in done]


def _trial(point: dict[str, Any], trial_id: str, wanted: Search, outcomes: Path) -> Trial:
    files = [outcomes / f"{_prefix(wanted)}{trial_id}-{cycle}.json" for cycle in range(1, len(wanted.log) + 1)]
    cycles = tuple(AfterCycle.read(file.read_text(encoding="utf-8")) for file in files if file.exists())
    return Trial(trial_id, point, wanted.space.changes(point, wanted.recipe), cycles)


def _checked(
    home: Home, wanted: Search, best: Trial, before: dict[str, str], outcomes: Path
) -> dict[str, dict[str, float]]:
    """The recipe that the search started from, and the best one, through cycles that no trial has seen."""
    if not wanted.check:
        return {}
    run = partial(run_sequence, home, champion=wanted.champion, log=wanted.check, probes=wanted.probes, before=before)
    recipes = {"default": wanted.recipe, "best": wanted.recipe_at(best.point)}
    return {
        name: [*run(recipe, name=f"{_prefix(wanted)}check-{name}", outcomes=outcomes)][-1].measures
        for name, recipe in recipes.items()
    }


def _written(
    home: Home, folder: Path, wanted: Search, trials: tuple[Trial, ...], check: dict[str, dict[str, float]]
) -> Found:
    """Trials, check, plot, the best trial's best bundle; last the recipe, which says that the search is finished."""
    shutil.rmtree(folder / BEST, ignore_errors=True)
    shutil.copytree(trials[0].best_cycle.bundle, folder / BEST)
    for name, told in ((TRIALS_FILE, [trial.row() for trial in trials]), (CHECK_FILE, check)):
        (folder / name).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    plot(trials, len(wanted.log), folder / PLOT_FILE)
    wanted.recipe_at(trials[0].point).write(folder / RECIPE_FILE)
    for run in home.train_storage.glob(f"{_prefix(wanted)}*"):
        shutil.rmtree(run)
    return Found(trials, folder / RECIPE_FILE, folder, check)
