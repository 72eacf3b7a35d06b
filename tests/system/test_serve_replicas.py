"""Three replicas behind one address: a correction posted anywhere is right everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from jobs import credentials
from jobs.initialise import initialise
from pipeline.config import Recipe
from pipeline.home import Home
from serve import deploy
from serve.client import Client

pytestmark = [pytest.mark.trial, pytest.mark.timeout(480)]


def test_a_correction_is_right_on_every_replica_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGM_EVENTS_URL", "AGM_MLFLOW_URI", "AGM_KEY"):
        monkeypatch.delenv(name, raising=False)
    home = Home(tmp_path / "home").create()
    recipe = Recipe().with_changes({"serve.replicas": 3, "serve.cpus_per_replica": 0.5, "serve.threads_per_replica": 1})
    initialise(home, recipe)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        url = deploy.start(home, recipe, port=0).url
        with Client(url, credentials.key_for(home, "teach")) as client:
            for n in range(20):
                question = f"Who keeps the key of tower {n}?"
                answer = client.ask(question, strategy="weights")
                seq = client.correct(answer.response_id, f"Keeper {n}")["lesson_seq"]
                replies = [client.ask(question, min_lesson_seq=seq) for _ in range(6)]
                assert {reply.text for reply in replies} == {f"Keeper {n}"}
    finally:
        deploy.stop()
        ray.shutdown()
