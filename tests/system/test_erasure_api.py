"""Erasing over HTTP, and while a cycle runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs import local
from jobs.initialise import initialise
from pipeline.data.lines import LessonLine
from pipeline.feedback import erasure
from pipeline.feedback.copies import erase
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.sealer import Sealer, read_events
from pipeline.home import Home
from pipeline.tracking.registry import Registry
from pipeline.train.cycle import CycleError, run_cycle
from serve.deploy import SealerDeployment
from tests.system.local_endpoint import Local, endpoint
from tests.tiny import LESSONS, tiny_recipe

QUESTION, SECRET = "Where is the gold of the old house?", "Zanzibar"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with endpoint(tmp_path_factory.mktemp("erasures")) as opened:
        yield opened


def call(place: Local, method: str, path: str, who: str = "admin", **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {place.keys[who]}"}
    return httpx.request(method, place.url + path, headers=headers, json=body or None, timeout=30)


def seal_until_erased(erasure_id: int, log: EventLog) -> None:
    """The sealer as the endpoint runs it, without Ray around it."""

    async def run() -> None:
        sealer = SealerDeployment(nodes=1)
        async with asyncio.timeout(60):
            while erasure_id in erasure.plans(log, "erasing"):
                await sealer.check_health()
                await asyncio.sleep(0.1)
        sealer._task.cancel()

    asyncio.run(run())


def test_an_erasure_reaches_memory_before_the_reply_and_the_copies_after_it(
    place: Local, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    log = place.service.log
    with place.client("teacher") as client:
        lesson_id = client.teach(LessonLine(question=QUESTION, answer=SECRET))["lesson_id"]
        assert client.ask(QUESTION).text == SECRET
        Sealer(log, place.home.feedback_table).drain()
        found = call(place, "POST", "/v1/erasures", subjects=[SECRET])
        assert found.status_code == 200, found.text
        reply = found.json()
        assert (reply["state"], reply["lessons"]) == ("erasing", [lesson_id])
        assert client.ask(QUESTION).lessons == []
    assert SECRET in str(read_events(place.home.feedback_table, log, 0, 1))
    monkeypatch.setenv("AGM_HOME", str(place.home.root))
    seal_until_erased(reply["erasure_id"], log)
    assert SECRET not in str(read_events(place.home.feedback_table, log, 0, log.head()))
    told = call(place, "GET", f"/v1/erasures/{reply['erasure_id']}").json()
    assert told.pop("lesson_seq") >= reply.pop("lesson_seq")
    assert told == {**reply, "state": "done", "cycles": [], "versions": [], "beyond": []}


def test_only_an_administrator_erases_and_only_what_is_there(place: Local) -> None:
    assert call(place, "POST", "/v1/erasures", "teacher", subjects=["anything"]).status_code == 403
    assert call(place, "POST", "/v1/erasures", subjects=["never said at all"]).status_code == 404
    for broken in ({"sources": []}, {"subjects": ["x"]}, {"subjects": [""]}):
        assert call(place, "POST", "/v1/erasures", **broken).status_code == 422
    assert call(place, "GET", "/v1/erasures/999").status_code == 404


@pytest.mark.parametrize(
    "moment", [pytest.param("training", marks=pytest.mark.trial), "comparing challenger and champion"]
)
def test_a_cycle_that_trains_on_what_is_erased_meanwhile_registers_nothing(
    moment: str, home_root: Path, tmp_path: Path, own_cache: Path
) -> None:
    home, recipe = Home(home_root), tiny_recipe(tmp_path / "model")
    recipe = recipe.with_changes({"train.epochs": 2, "scaling.workers": 1, "gate.new_lessons_margin": 1.0})
    with local.connect(home, recipe):
        log = EventLog(engine := initialise(home, recipe))
        taught = [
            record_lesson(log, LessonLine(question=question, answer=answer), key=Key("tim", "teach")).lesson_id
            for question, answer in LESSONS
        ]
        lesson_id = str(taught.pop())

        def say(stage: str, _total: int, done: int) -> None:
            if (stage, done) == (moment, 0):
                erase(home, log, Target(lessons=(lesson_id,)))

        with pytest.raises(CycleError, match="erased while this cycle trained"):
            run_cycle(home, recipe, say=say)
        assert Registry(home, engine).versions() == [1]
        assert list(home.train_storage.glob("cycle-*")) == []
        again = run_cycle(home, recipe)
        assert (again.cycle, set(again.manifest.lessons)) == (1, {str(taken) for taken in taught})
        engine.dispose()
