"""Processes that are killed at random moments under load: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections import Counter
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from deltalake import DeltaTable

from pipeline.config import FeedbackSettings, Recipe
from pipeline.feedback.compaction import compact
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.manifest import Manifest, build_manifest
from pipeline.feedback.sealer import Sealer, read_events
from pipeline.home import Home
from tests.data.kill_worker import work

WORKERS = (("writer", "a"), ("writer", "b"), ("sealer", ""), ("compactor", ""), ("cycle", ""))


def start(role: str, home: Home, name: str) -> BaseProcess:
    """A process of its own, from a server that has imported everything: a start takes milliseconds, not seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.data.kill_worker"])
    process = context.Process(target=work, args=(role, str(home.root), name), daemon=True)
    process.start()
    return process


def trial(home: Home, kills: int, seed: int) -> Counter[str]:
    """All roles at work; again and again one of them is killed and started anew. Returns the kills by role."""
    moments, killed = random.Random(seed), Counter[str]()
    open_database(home.events_url).dispose()
    running = {worker: start(worker[0], home, worker[1]) for worker in WORKERS}
    try:
        time.sleep(3)
        for number in range(kills):
            time.sleep(moments.uniform(0.05, 1.5))
            role, name = worker = WORKERS[number % len(WORKERS)]
            assert running[worker].is_alive(), f"{role} {name} ended by itself: {running[worker].exitcode}"
            running[worker].kill()
            running[worker].join(30)
            assert running[worker].exitcode == -9
            killed[role] += 1
            running[worker] = start(role, home, name)
        time.sleep(2)
    finally:
        for process in running.values():
            process.kill()
            process.join(30)
    return killed


def check(home: Home) -> dict[str, int]:
    """Acknowledged = logged = sealed, each once; cycles follow each other without a gap and can be made again."""
    log = EventLog(open_database(home.events_url))
    events = list(log.pages())
    assert [event.seq for event in events] == list(range(1, log.head() + 1))
    assert max(Counter((e.feedback_id, e.kind) for e in events if e.feedback_id).values()) == 1
    places = {event.feedback_id: event.seq for event in reversed(events) if event.feedback_id}
    acks = [line.split() for file in home.root.glob("*.acks") for line in file.read_text().splitlines()]
    assert [ack for ack in acks if places.get(ack[0]) != int(ack[1])] == []
    assert len({ack[0] for ack in acks}) == len(acks) > 0

    Sealer(log, home.feedback_table).drain()
    compact(home.feedback_table, log, FeedbackSettings(keep_versions_hours=0))
    sealed = sorted(DeltaTable(home.feedback_table).to_pyarrow_table(columns=["seq"])["seq"].to_pylist())
    assert sealed == list(range(1, log.head() + 1))
    assert read_events(home.feedback_table, log, 0, log.head()) == events

    manifests = [Manifest.load(file) for file in sorted(home.cycles.glob("*/manifest.json"))]
    assert [manifest.cycle for manifest in manifests] == list(range(1, len(manifests) + 1))
    assert [m.from_seq for m in manifests] == [0, *(m.to_seq for m in manifests)][: len(manifests)]
    assert sum(manifest.rows for manifest in manifests) == manifests[-1].to_seq
    again = partial(build_manifest, home.feedback_table, log, seed=7, served=Recipe().feedback.replay_served)
    for manifest in random.Random(1).sample(manifests, min(5, len(manifests))):
        made = again(cycle=manifest.cycle, from_seq=manifest.from_seq, to_seq=manifest.to_seq)
        assert made.model_copy(update={"table_version": manifest.table_version}) == manifest
        trained = home.cycles / f"{manifest.cycle:06d}" / "trained.json"
        assert not trained.exists() or set(json.loads(trained.read_text())["lessons"]) == set(manifest.lessons)
    log.engine.dispose()
    return {"events": len(events), "acknowledged": len(acks), "cycles": len(manifests)}


def test_a_few_kills_of_every_role(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    killed = trial(home, 5, seed=3)
    assert set(killed) == {"writer", "sealer", "compactor", "cycle"}
    check(home)


@pytest.mark.trial
@pytest.mark.timeout(480)
def test_a_hundred_kills(tmp_path: Path) -> None:
    killed: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for seed in range(5):
        home = Home(tmp_path / f"home{seed}").create()
        killed += trial(home, 20, seed)
        found.update(check(home))
    print(f"kills {dict(killed)}; {dict(found)}; 0 lost, 0 doubled")
    assert killed.total() == 100
