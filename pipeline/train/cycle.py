"""One cycle: a range of feedback becomes a challenger, and the gate decides whether it becomes champion.

A cycle's folder under ``AGM_HOME/cycles`` holds its manifest from the start and its verdict at the end; a cycle
without a verdict was interrupted, and the next call goes on with the same range and the same training run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray

from pipeline.config import Recipe
from pipeline.data.examples import example
from pipeline.data.lines import ProbeLine, RetentionProbe, read_lines
from pipeline.evaluate.compare import Examination, Outcome, evidence, examination, examine_bundle, sample
from pipeline.evaluate.gate import Evidence, Verdict, decide
from pipeline.evaluate.metrics import share
from pipeline.evaluate.retention import kept
from pipeline.feedback import erasure
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.manifest import (
    MANIFEST,
    VERDICT,
    Manifest,
    build_manifest,
    cycle_history,
    cycle_lessons,
    manifests,
)
from pipeline.feedback.sealer import Sealer, sealed_seq
from pipeline.home import Home
from pipeline.memory.belief import fold
from pipeline.memory.types import Lesson
from pipeline.model.bundle import Bundle
from pipeline.revision import revision
from pipeline.tracking.registry import Champion, Registry
from pipeline.train.dataset import TrainingSet, lesson_items
from pipeline.train.fit import FitResult, fit
from pipeline.train.history import HEAT_MAP, draw, record_answers, record_row, retained, trained_in
from pipeline.train.placement import on_worker
from pipeline.train.replayed import replayed_lessons, served_prompts, shipped_prompts

EXAM = "examination.json"
EARLIER_LESSONS = 200  # sampled: what a cycle costs must not grow with history

Say = Callable[[str, int, int], None]  # (stage, total, done)


def _silent(_stage: str, _total: int, _done: int) -> None:
    pass


class CycleError(RuntimeError):
    """A cycle cannot start."""


@dataclass(frozen=True)
class CycleResult:
    cycle: int
    version: int | None  # None where there was nothing to learn
    verdict: Verdict | None
    manifest: Manifest
    folder: Path
    measures: dict[str, Any]
    exam: Examination | None = None
    champion: Outcome | None = None
    challenger: Outcome | None = None


def run_cycle(home: Home, recipe: Recipe, *, say: Say | None = None) -> CycleResult:
    """Drain, train, compare, decide. Needs a connected Ray and an initialised home."""
    tell = say or _silent
    engine = open_database(home.events_url, nodes=sum(node["Alive"] for node in ray.nodes()))
    registry = Registry(home, engine)
    champion = registry.champion()
    if champion is None:
        raise CycleError(f"{home.root} has no champion yet: start with 'agm serve' or 'agm demo'")
    before = Bundle.load(champion.folder)
    require_same_model(recipe, before)
    tell("reading the feedback", 1, 0)
    log = EventLog(engine)
    folder, manifest = open_cycle(home, log, before.trained_through_seq, recipe)
    made = registry.made_by(manifest.cycle, from_seq=manifest.from_seq, to_seq=manifest.to_seq)
    if made is not None and (verdict := registry.verdict(made)) is not None:
        return _written_down(registry, made, verdict, manifest, folder)
    waiting = erasure.plans(log, "waiting")
    if not manifest.lessons and not waiting:
        (folder / VERDICT).write_text("null\n", encoding="utf-8")
        return CycleResult(manifest.cycle, None, None, manifest, folder, {})
    data, exam = read_cycle(home, log, recipe, manifest, before)
    with _open_or_said(home, folder, manifest):
        if manifest.lessons:
            trained = train_on(home, recipe, champion, manifest, data, tell)
        else:
            trained = forgotten(before, champion, manifest, folder)
        tell("comparing challenger and champion", 1, 0)
        outcomes = compare_on_cluster(home, recipe, [champion.folder, trained.bundle], exam)
    with home.alone():
        _require_open(home, folder, manifest)
        version, verdict, measures = _concluded(registry, made, trained, manifest, recipe, exam, outcomes, folder)
        if verdict.promoted:
            erasure.set_state(log, waiting, "done")
        verdict.save(folder / VERDICT)
    tell("decided", 1, 1)
    return CycleResult(manifest.cycle, version, verdict, manifest, folder, measures, exam, *outcomes)


def require_same_model(recipe: Recipe, champion: Bundle) -> None:
    """Said before anything is trained: what comes of it would not load."""
    mine, its = recipe.model.base, champion.recipe.model.base
    if mine != its:
        raise CycleError(
            f"model.base = {mine!r}, but this home's champion rests on {its!r}: give the recipe that the home was "
            "started with, or set AGM_HOME to another folder"
        )


@contextmanager
def _open_or_said(home: Home, folder: Path, manifest: Manifest) -> Iterator[None]:
    """An erasure takes the files away that the cycle works with: what then fails says so, not which file is missing."""
    try:
        yield
    except Exception:
        _require_open(home, folder, manifest)
        raise


def _require_open(home: Home, folder: Path, manifest: Manifest) -> None:
    """An erasure closes the cycle that runs: what it has trained must not be registered, nor stay on the disk."""
    if (folder / MANIFEST).exists() and Manifest.load(folder / MANIFEST) == manifest:
        return
    for run in home.train_storage.glob(f"{run_prefix(manifest)}*"):
        shutil.rmtree(run)
    raise CycleError("feedback was erased while this cycle trained on it; nothing of it was kept: run the update again")


def open_cycle(home: Home, log: EventLog, from_seq: int, recipe: Recipe) -> tuple[Path, Manifest]:
    """The interrupted cycle where there is one, else a new one over everything after ``from_seq``."""
    folders = sorted(path for path in home.cycles.iterdir() if (path / MANIFEST).exists())
    if folders and not (folders[-1] / VERDICT).exists():
        return folders[-1], Manifest.load(folders[-1] / MANIFEST)
    Sealer(log, home.feedback_table).drain()
    number = len(folders) + 1
    manifest = build_manifest(
        home.feedback_table,
        log,
        cycle=number,
        from_seq=from_seq,
        to_seq=sealed_seq(home.feedback_table),
        seed=recipe.train.seed,
        served=recipe.feedback.replay_served,
        replayed=lambda earlier: replayed_lessons(earlier, home.cycles, recipe.train, number),
    )
    folder = home.cycles / f"{number:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    manifest.save(folder / MANIFEST)
    return folder, manifest


def _written_down(registry: Registry, version: int, verdict: Verdict, manifest: Manifest, folder: Path) -> CycleResult:
    """A cycle that was interrupted after its decision: nothing is trained or decided again."""
    registry.repair_aliases()
    exam = folder / EXAM
    measures = json.loads(exam.read_text(encoding="utf-8"))["measures"] if exam.exists() else {}
    verdict.save(folder / VERDICT)
    return CycleResult(manifest.cycle, version, verdict, manifest, folder, measures)


def run_prefix(manifest: Manifest) -> str:
    return f"cycle-{manifest.cycle:06d}"


def train_on(
    home: Home, recipe: Recipe, champion: Champion, manifest: Manifest, data: TrainingSet, tell: Say
) -> FitResult:
    tell("training", recipe.train.epochs, 0)
    return fit(
        home,
        recipe,
        name=f"{run_prefix(manifest)}-from-{champion.version}-seq-{manifest.to_seq}",
        champion=champion.folder,
        data=data,
        through_seq=manifest.to_seq,
        cycle=manifest.cycle,
        parent=champion.version,
        progress=lambda total, done: tell("training", total, done),
    )


def forgotten(before: Bundle, champion: Champion, manifest: Manifest, folder: Path) -> FitResult:
    """Nothing to learn, but something was erased from the champion's files: a version for whoever serves to take."""
    bundle = replace(
        before,
        cycle=manifest.cycle,
        parent=champion.version,
        trained_through_seq=manifest.to_seq,
        code=revision(),
    )
    bundle.save(folder / "bundle")
    return FitResult(folder / "bundle", {})


def training_set(manifest: Manifest, lessons: dict[str, Lesson], recipe: Recipe, asked: dict[int, str]) -> TrainingSet:
    """Every accepted lesson in its trained phrasings, the withheld ones never; as replay what was ``asked`` (by row of
    the event log) before the shipped prompts, so that a method which takes only some takes those.

    ``lessons``: the manifest's own and those that it replays, which are trained alike.
    """
    withheld = dict.fromkeys(manifest.replayed, ()) | manifest.withheld
    items = lesson_items(lessons, recipe.train.templates, withheld)
    return TrainingSet(items, (*asked.values(), *shipped_prompts()), tuple(asked))


def read_cycle(
    home: Home, log: EventLog, recipe: Recipe, manifest: Manifest, champion: Bundle
) -> tuple[TrainingSet, Examination]:
    """What the cycle trains on and what it asks, from one reading of the table; nothing of the rest is kept."""
    history = cycle_history(home.feedback_table, log, manifest)
    lessons = cycle_lessons(history, manifest)
    known = fold(event for event in history if event.seq <= manifest.from_seq)
    asked = served_prompts(log, history, manifest, recipe, champion) if lessons else {}
    exam = _examination(home, known, recipe, manifest, lessons)
    replayed = {lesson_id: known[lesson_id] for lesson_id in manifest.replayed}
    return training_set(manifest, lessons | replayed, recipe, asked), exam


def _examination(
    home: Home, known: dict[str, Lesson], recipe: Recipe, manifest: Manifest, lessons: dict[str, Lesson]
) -> Examination:
    """``known``: the lessons before the cycle; ``lessons``: its own."""
    held = [x for x in known.values() if x.scope == "global" and x.believed and x.lesson_id not in lessons]
    earlier = sample(held, EARLIER_LESSONS, manifest.seed)
    before = trained_in(manifests(home.cycles))
    probes = examination(
        read_lines(example("retention/probes.jsonl"), RetentionProbe),
        read_lines(example("replay/unrelated.jsonl"), ProbeLine),
        recipe.gate,
        recipe.train.seed,
    )
    return replace(
        probes,
        new_lessons=tuple((lesson.question, lesson.answer) for lesson in lessons.values()),
        withheld=tuple((text, lessons[i].answer) for i, texts in manifest.withheld.items() for text in texts),
        earlier=tuple((lesson.question, lesson.answer) for lesson in earlier),
        earlier_cycles=tuple(before.get(lesson.lesson_id, 0) for lesson in earlier),
        earlier_lessons=tuple(lesson.lesson_id for lesson in earlier),
    )


def compare_on_cluster(home: Home, recipe: Recipe, folders: list[Path], exam: Examination) -> list[Outcome]:
    """Every bundle through the same examination, side by side, on workers of the kind that trains."""
    task = on_worker(examine_bundle, home, recipe.scaling)
    outcomes: list[Outcome] = ray.get([task.remote(folder, exam) for folder in folders])
    return outcomes


def _concluded(
    registry: Registry,
    made: int | None,
    trained: FitResult,
    manifest: Manifest,
    recipe: Recipe,
    exam: Examination,
    outcomes: list[Outcome],
    folder: Path,
) -> tuple[int, Verdict, dict[str, Any]]:
    """Decide, register, and write down what was measured."""
    found = evidence(*outcomes)
    verdict = decide(found, recipe.gate)
    measures = measures_of(found, outcomes[1]) | {"seconds_training": trained.metrics.get("seconds", 0.0)}
    record_row(folder, manifest.cycle, exam, outcomes[1])
    record_answers(folder, manifest.lessons, exam, outcomes[1] if verdict.promoted else outcomes[0])
    known = retained(folder.parent)
    measures |= {f"cycles_{name}": value for name, value in known.figures().items()}  # learned, forgetting, ...
    version = _decided(registry, made, trained, manifest, recipe, verdict, measures)
    draw(known, folder / HEAT_MAP)
    registry.attach(version, folder / HEAT_MAP)
    (folder / EXAM).write_text(json.dumps({"measures": measures}, indent=2), encoding="utf-8")
    return version, verdict, measures


def measures_of(found: Evidence, challenger: Outcome) -> dict[str, Any]:
    """Shares with intervals: what was learned (trained and withheld phrasing) and what stayed."""
    named = {
        "learned": share(challenger.new_lessons),
        "withheld": share(challenger.withheld),
        "earlier": share(challenger.earlier),
        "retention_kept": kept(found.retention.champion, found.retention.challenger),
        "unrelated": share(found.unrelated.challenger),
    }
    return {name: asdict(value) for name, value in named.items() if value.n}


def _decided(
    registry: Registry,
    made: int | None,
    trained: FitResult,
    manifest: Manifest,
    recipe: Recipe,
    verdict: Verdict,
    measures: dict[str, Any],
) -> int:
    """Register the challenger, unless an interrupted run of this cycle has; then promote or refuse it."""
    figures = {name: m["value"] if isinstance(m, dict) else float(m) for name, m in measures.items()}
    figures |= {"loss": float(trained.metrics.get("loss", 0.0))}
    version = made or registry.register(
        trained.bundle,
        cycle=manifest.cycle,
        metrics=figures,
        params=recipe.train.model_dump(exclude={"memory"}) | {"lessons": len(manifest.lessons)},
        tags={
            "from_seq": manifest.from_seq,
            "to_seq": manifest.to_seq,
            "verdict": "promoted" if verdict.promoted else "refused",
        },
    )
    if verdict.promoted:
        registry.promote(version, verdict, manifest.cycle)
    else:
        registry.refuse(version, verdict, manifest.cycle)
    return version
