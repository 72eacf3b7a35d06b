"""The copies of what was erased: Delta table and history, cycles, training sets, bundles, snapshots, transcripts.

Every step can be repeated; together they finish an erasure that :func:`pipeline.feedback.erasure.mark` has decided.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluate.answers import cache_file, forget_answers
from pipeline.feedback import erasure
from pipeline.feedback.compaction import delete_sealed, vacuum
from pipeline.feedback.erasure import Plan, Target
from pipeline.feedback.events import EventLog
from pipeline.feedback.manifest import MANIFEST, VERDICT, Manifest
from pipeline.feedback.sealer import Sealer
from pipeline.home import Home
from pipeline.memory.belief import slot_id
from pipeline.model.bundle import Bundle
from pipeline.tracking.registry import Registry

FOUND = ("recipe.yaml", "trials.json", "check.json", "learned_against_forgotten.png")  # of a search: no words in them
LIMITS = (
    "backups, replicas of the database and exports made before stay as they are; a source's own words in them are "
    "unreadable once older master keys are destroyed (agm feedback rotate)",
    "PostgreSQL's write-ahead log and its archive hold the rows, encrypted, until the server discards them; a file "
    "that a sealer was writing meanwhile and could not commit lies beside the table, encrypted, until a later "
    "agm compact",
    "a model version whose ordinary weights were trained on it (method 'full', 'upper' or 'lora', agm pretrain "
    "--instruct) keeps what it learned until it is trained again from a version before",
    "answers already sent to a client, and what a client has stored, are out of reach",
)


@dataclass
class Erased:
    """What one erasure has done, without a word of it."""

    erasure_id: int
    rows: int
    lessons: tuple[str, ...]
    cycles: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)  # whose memory layers held an erased lesson; they do no longer
    beyond: list[int] = field(default_factory=list)  # whose ordinary weights were trained on one, or come from such
    files: list[str] = field(default_factory=list)
    waits_for_cycle: bool = False


def erase(home: Home, log: EventLog, target: Target) -> Erased:
    """Erase ``target`` everywhere. Raises ``LookupError`` where nothing matches."""
    with home.alone():
        erasure_id = erasure.mark(log, target)
        return _finish(home, log, erasure_id, erasure.plans(log, "erasing")[erasure_id])


def resume(home: Home, log: EventLog) -> list[Erased]:
    """Finish the erasures that were decided over HTTP, or interrupted."""
    with home.alone():
        return [_finish(home, log, *found) for found in erasure.plans(log, "erasing").items()]


def _finish(home: Home, log: EventLog, erasure_id: int, plan: Plan) -> Erased:
    done = Erased(erasure_id, plan.erased, plan.lessons)
    _scrub_database(log)
    _erase_sealed(home, log, plan)
    _erase_cycles(home, plan, done)
    _erase_training_sets(home, plan, done)
    _erase_searches(home, plan, done)
    _erase_bundles(home, log, plan, done)
    _erase_snapshots(home, done)
    _erase_transcripts(home, plan, done)
    _erase_answers(done)
    done.waits_for_cycle = bool(done.versions or done.beyond or done.cycles)
    report = {"cycles": done.cycles, "versions": done.versions, "beyond": done.beyond}
    erasure.set_state(log, [erasure_id], "waiting" if done.waits_for_cycle else "done", report)
    return done


def _scrub_database(log: EventLog) -> None:
    """SQLite overwrites deleted rows (``secure_delete``) and empties its write-ahead log; PostgreSQL is vacuumed."""
    with log.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if log.engine.dialect.name == "sqlite":
            connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
        else:
            connection.exec_driver_sql("VACUUM events, event_vectors, subject_keys, citations")


def _erase_sealed(home: Home, log: EventLog, plan: Plan) -> None:
    """Rewrite the files that hold the rows, and delete the old ones.

    Draining first makes this log's newest application transaction lie behind every erased row, so that a sealer which
    still holds them in memory loses its commit.
    """
    Sealer(log, home.feedback_table).drain()
    delete_sealed(home.feedback_table, plan.rows)
    vacuum(home.feedback_table, 0)


def _erase_cycles(home: Home, plan: Plan, done: Erased) -> None:
    """An interrupted cycle starts anew, without the rows; a finished one keeps ids of what it trained, and no words."""
    for file in sorted(home.cycles.glob(f"*/{MANIFEST}")):
        manifest, gone, rows = Manifest.load(file), set(plan.lessons), set(plan.rows)
        shutil.rmtree(file.parent / "bundle", ignore_errors=True)  # the registry has a copy of its own
        if not (file.parent / VERDICT).exists():
            shutil.rmtree(file.parent)
            done.files.append(str(file.parent))
        elif gone & {*manifest.trained, *(d.lesson_id for d in manifest.dropped)} or rows & {*manifest.served}:
            clean = manifest.model_copy(
                update={
                    "served": tuple(row for row in manifest.served if row not in rows),
                    "withheld": {i: texts for i, texts in manifest.withheld.items() if i not in gone},
                    "dropped": tuple(
                        d.model_copy(update={"reason": "erased"}) if d.lesson_id in gone else d
                        for d in manifest.dropped
                    ),
                }
            )
            clean.save(file)
            if gone & {*manifest.trained}:
                done.cycles.append(manifest.cycle)


def _erase_training_sets(home: Home, plan: Plan, done: Erased) -> None:
    """Runs of cycles and searches that trained on an erased lesson or replayed an erased question: all of them."""
    for file in list(home.train_storage.rglob("training_set.json")):
        told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"items": ()}
        lessons = {item["lesson_id"] for item in told["items"]}
        if lessons & {*plan.lessons} or {*told.get("rows", ())} & {*plan.rows}:
            shutil.rmtree(file.parent)
            done.files.append(str(file.parent))


def _erase_searches(home: Home, plan: Plan, done: Erased) -> None:
    """Searches keep the lessons that they were given, as Ray Tune keeps what a trial trained; what they found stays."""
    for file in list(home.root.glob("tune/*/search.json")):
        asked = json.loads(file.read_text(encoding="utf-8"))
        questions = [lesson["question"] for cycle in (*asked["log"], *asked["check"]) for lesson in cycle]
        if {slot_id(plan.tenant, "global", "", question) for question in questions} & set(plan.lessons):
            for path in file.parent.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name not in FOUND:
                    path.unlink()
            done.files.append(str(file.parent))


def _erase_bundles(home: Home, log: EventLog, plan: Plan, done: Erased) -> None:
    """A memory layer has slots of its own for each lesson: they go from every version, champion included.

    Whoever serves has loaded its version already; the next cycle gives it a new one.
    """
    registry = Registry(home, log.engine)
    for version in registry.versions() if registry.exists() else ():
        folder = registry.folder(version)
        bundle = Bundle.load(folder)
        if bundle.memory is not None and set(bundle.memory.slots) & set(plan.lessons):
            bundle.without_lessons(set(plan.lessons)).save(folder)
            done.versions.append(version)
        if bundle.tensors and (bundle.cycle in done.cycles or bundle.parent in done.beyond):
            done.beyond.append(version)


def _erase_snapshots(home: Home, done: Erased) -> None:
    """Snapshots of the lesson memory are a cache of the log: the next start makes them again."""
    for file in [path for path in home.root.rglob("memory.json") if home.artifacts not in path.parents]:
        shutil.rmtree(file.parent)
        done.files.append(str(file.parent))


def _erase_transcripts(home: Home, plan: Plan, done: Erased) -> None:
    for file in home.root.glob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = list(_without_lessons(lines, set(plan.lessons)))
        if len(kept) < len(lines):
            file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            for report in ("report.json", "report.html"):
                (home.root / report).unlink(missing_ok=True)
            done.files.append(str(file))


def _erase_answers(done: Erased) -> None:
    """What evaluations have let models answer: kept by a digest of the prompt, so nobody can say which to keep."""
    if forget_answers(cache_file()):
        done.files.append(str(cache_file()))


def _without_lessons(lines: list[str], gone: set[str]) -> Iterator[str]:
    """Records that name none of the lessons, and none of the facts that the records of those lessons are about."""
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    facts = {record.get("lesson") for record in records if _named(record) & gone} - {None}
    for line, record in zip(lines, records, strict=True):
        if not _named(record) & gone and record.get("lesson") not in facts:
            yield line


def _named(record: dict[str, Any]) -> set[str]:
    return {*(record.get("lessons") or ()), record.get("lesson_id")} - {None}
