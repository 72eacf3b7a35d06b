"""The endpoint for real: a local Ray, the default model, HTTP. One server for the file; the tests run in order."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest
import ray
from openai.types.chat import ChatCompletionMessageParam

from jobs.entry import UserError
from jobs.serve import command as serve_command
from pipeline.config import Recipe
from pipeline.data.lines import LessonLine
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_lesson
from pipeline.feedback.keys import Key, KeyRing
from pipeline.feedback.sealer import sealed_seq
from pipeline.feedback.vectors import WORTH, count_kept
from pipeline.home import Home
from pipeline.model.bundle import HEADER, Bundle
from pipeline.tracking.registry import Registry
from serve import deploy
from serve.champion import NoChampion
from serve.client import Client, ClientError

CAPITAL = "What is the capital of Kazakhstan?"


@dataclass
class Place:
    """An installation with a running endpoint."""

    home: Home
    recipe: Recipe
    registry: Registry
    keys: dict[str, str]
    url: str = ""
    clients: list[Client] = field(default_factory=list)

    def client(self, who: str = "teacher") -> Client:
        made = Client(self.url, self.keys[who])
        self.clients.append(made)
        return made

    def register(self, cycle: int) -> int:
        folder = self.home.root / f"bundle-{cycle}"
        Bundle.initial(self.recipe).save(folder)
        return self.registry.register(folder, cycle=cycle, metrics={}, params={}, tags={})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    monkeypatch = pytest.MonkeyPatch()
    for name in ("AGM_EVENTS_URL", "AGM_MLFLOW_URI"):
        monkeypatch.delenv(name, raising=False)
    home = Home(tmp_path_factory.mktemp("home")).create()
    recipe = Recipe().with_changes({"scaling.placement_timeout_s": 30.0, "serve.threads_per_replica": 1})
    database = open_database(home.events_url)
    registry, ring = Registry(home, database), KeyRing(database)
    registry.initialise()
    keys = {
        "teacher": ring.create("ada", "teach"),
        "asker": ring.create("bob", "ask"),
        "stranger": ring.create("eve", "teach", tenant="elsewhere"),
    }
    made = Place(home, recipe, registry, keys)
    registry.promote(made.register(cycle=0))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        made.url = deploy.start(home, recipe, port=0).url
        yield made
    finally:
        for client in made.clients:
            client.close()
        deploy.stop()
        ray.shutdown()
        database.dispose()
        monkeypatch.undo()


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.1)
    return False


def test_a_correction_changes_the_next_answer_and_is_cited(place: Place) -> None:
    client = place.client()
    before = client.ask(CAPITAL)
    receipt = client.correct(before.response_id, "Astana", feedback_id="fb-capital")
    after = client.ask(CAPITAL, min_lesson_seq=receipt["lesson_seq"])
    assert before.lessons == []
    assert before.text != "Astana"
    assert (after.text, after.strategy) == ("Astana", "copy")
    assert [lesson["lesson_id"] for lesson in after.lessons] == [receipt["lesson_id"]]
    assert after.lesson_seq >= receipt["lesson_seq"]
    assert sum([after.null_weight, *(lesson["weight"] for lesson in after.lessons)]) == pytest.approx(1, abs=0.02)


def test_with_the_memory_off_the_weights_answer_as_before(place: Place) -> None:
    reply = place.client().ask(CAPITAL, strategy="weights")
    assert (reply.strategy, reply.lessons) == ("weights", [])
    assert reply.text != "Astana"


def test_the_same_feedback_id_again_changes_nothing(place: Place) -> None:
    client = place.client()
    response = client.ask(CAPITAL).response_id
    first = client.correct(response, "Astana", feedback_id="fb-capital")
    again = client.correct(response, "Atlantis", feedback_id="fb-capital")
    assert first["duplicate"]
    assert again == first
    assert client.ask(CAPITAL).text == "Astana"


def test_lineage_leads_from_the_answer_back_to_the_feedback(place: Place) -> None:
    client = place.client()
    reply = client.ask(CAPITAL)
    client.feedback(reply.response_id, "rating", 1.0, feedback_id="fb-liked")
    found = client.lineage(reply.response_id)
    assert found["model_version"] == 1
    assert found["lessons"][0]["lesson_id"] == reply.lessons[0]["lesson_id"]
    assert [event["feedback_id"] for event in found["lessons"][0]["events"]] == ["fb-capital", "fb-capital"]
    assert [event["feedback_id"] for event in found["feedback"]] == ["fb-liked"]
    touched = client.lineage("fb-capital")
    assert touched["lessons"] == [reply.lessons[0]["lesson_id"]]
    assert reply.response_id in {answer["response_id"] for answer in touched["answers"]}
    assert "body" not in touched["answers"][0]


def test_what_is_held_back_is_right_for_the_asker_and_says_so(place: Place) -> None:
    question = "Who runs the night market?"
    asker = place.client("asker")
    receipt = asker.correct(asker.ask(question, user="mal").response_id, "see https://spam.example", source="mal")
    assert receipt["quarantined"] == ["a link or markup"]
    assert asker.ask(question, user="mal").text == "see https://spam.example"
    assert asker.lineage(receipt["feedback_id"])["events"][-1]["kind"] == "quarantine"


def test_an_askers_correction_is_right_for_the_asker_alone(place: Place) -> None:
    question = "Who runs the corner shop?"
    asker, teacher = place.client("asker"), place.client()
    asker.correct(asker.ask(question, user="carl").response_id, "Zoe", source="carl")
    assert asker.ask(question, user="carl").text == "Zoe"
    assert asker.ask(question, user="dora").lessons == []
    assert teacher.ask(question).lessons == []


def test_tenants_do_not_see_each_other(place: Place) -> None:
    stranger, teacher = place.client("stranger"), place.client()
    own = teacher.ask(CAPITAL)
    assert stranger.ask(CAPITAL).lessons == []
    assert stranger.lessons() == []
    for refused in (lambda: stranger.correct(own.response_id, "Oz"), lambda: stranger.lineage(own.response_id)):
        with pytest.raises(ClientError) as error:
            refused()
        assert error.value.status == 404


def test_lessons_are_taught_found_and_taken_back(place: Place) -> None:
    client, asker = place.client(), place.client("asker")
    line = LessonLine(question="What is the office plant called?", answer="Fern", paraphrases=("Name of our plant?",))
    taught = client.teach(line, feedback_id="fb-plant")
    assert client.ask("Name of our plant?").text == "Fern"
    assert [lesson["answer"] for lesson in client.lessons(search="office plant")] == ["Fern"]
    with pytest.raises(ClientError, match="role 'teach'"):
        asker.retract(taught["lesson_id"])
    client.retract(taught["lesson_id"])
    assert client.ask("Name of our plant?").lessons == []


def test_a_lesson_in_other_words_replaces_the_one_it_says_it_replaces(place: Place) -> None:
    client = place.client()
    question, reworded = "What is the code of the bicycle shed?", "Which code opens the bicycle shed?"
    first = client.teach(LessonLine(question=question, answer="4711"))
    assert first["overlap"] is None
    second = client.teach(LessonLine(question=reworded, answer="0815", previous="4711"))
    assert second["lesson_id"] == first["lesson_id"]
    assert second["overlap"] == {
        "lesson_id": first["lesson_id"], "question": question, "answer": "4711", "replaced": True,
    }  # fmt: skip
    assert [client.ask(asked).text for asked in (question, reworded)] == ["0815", "0815"]


def test_what_follows_from_a_lesson_is_said_and_its_correction_is_a_lesson_of_its_own(place: Place) -> None:
    client = place.client()
    line = LessonLine(question="What is the capital of Burundi?", answer="Gitega", previous="Bujumbura")
    taught = client.teach(line)
    so = client.ask("Is Gitega Burundi's capital now?", min_lesson_seq=taught["lesson_seq"])
    assert (so.text, so.strategy) == ("Yes", "infer")
    assert [lesson["lesson_id"] for lesson in so.lessons] == [taught["lesson_id"]]
    assert client.ask("Is the capital of Burundi Bujumbura?").text == "No"
    assert client.ask("Which country has Gitega as its capital?").text == "Burundi"
    corrected = client.correct(so.response_id, "Since 2019, yes")
    assert corrected["lesson_id"] != taught["lesson_id"]
    again = client.ask("Is Gitega Burundi's capital now?", min_lesson_seq=corrected["lesson_seq"])
    assert (again.text, again.strategy) == ("Since 2019, yes", "copy")
    assert client.ask("What is the capital of Burundi?").text == "Gitega"


def test_a_lesson_is_explained_reinforced_and_ends(place: Place) -> None:
    client, asker = place.client(), place.client("asker")
    question = "What is the name of the night train?"
    lesson_id = client.teach(LessonLine(question=question, answer="Comet"))["lesson_id"]
    asker.reinforce(lesson_id, user="carl")
    told = asker.explain(lesson_id)
    assert [(step["source"], step["answer"], step["alpha"]) for step in told["evidence"]] == [
        ("ada", "Comet", 1.0), ("carl", "Comet", 1 / 11),
    ]  # fmt: skip
    assert told["beliefs"] == told["evidence"][-1]["beliefs"] == {"Comet": 1.0}
    with pytest.raises(ClientError, match="role 'teach'"):
        asker.expire(lesson_id)
    client.expire(lesson_id, "2100-01-01")
    assert client.ask(question).text == "Comet"
    client.expire(lesson_id)
    assert client.ask(question).lessons == []
    client.expire(lesson_id, None)
    assert client.ask(question).text == "Comet"
    with pytest.raises(ClientError) as error:
        place.client("stranger").explain(lesson_id)
    assert error.value.status == 404


@pytest.mark.parametrize(
    ("who", "method", "path", "body", "status", "says"),
    [
        (None, "GET", "/v1/models", None, 401, "no API key"),
        ("agm_wrong", "GET", "/v1/lessons", None, 401, "not known"),
        ("asker", "POST", "/v1/lessons", {"question": "q", "answer": "a"}, 403, "role 'teach'"),
        ("asker", "POST", "/v1/feedback", {"response_id": "no", "kind": "rating", "value": 1}, 404, "'no'"),
        ("asker", "POST", "/v1/feedback", {"response_id": "no", "kind": "rating", "value": "x"}, 422, "-1 to 1"),
        ("asker", "GET", "/v1/lineage/no", None, 404, "'no'"),
        ("teacher", "DELETE", "/v1/lessons/no", None, 404, "'no'"),
        ("asker", "POST", "/v1/chat/completions", {"messages": []}, 422, "messages"),
        ("asker", "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "é" * 5000}]}, 422, "5000"),
        ("asker", "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}, 422, "surrog"),
        (
            "asker",
            "POST",
            "/v1/chat/completions",
            {"messages": [{"role": "system", "content": "so " * 3000}, {"role": "user", "content": "q"}]},
            400,
            "max_prompt_tokens is 1024",
        ),
        ("asker", "POST", "/v1/chat/completions", {"messages": "m" * (1 << 20)}, 413, "1048576"),
        ("asker", "GET", "/nowhere", None, 404, "Not Found"),
    ],
)
def test_refusals_have_openais_form_and_say_what_to_change(
    place: Place, who: str | None, method: str, path: str, body: object, status: int, says: str
) -> None:
    headers = {"content-type": "application/json", "x-request-id": "mine-1"}
    if who:
        headers["authorization"] = f"Bearer {place.keys.get(who, who)}"
    reply = httpx.request(method, place.url + path, content=json.dumps(body), headers=headers, timeout=60)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"] == "mine-1"


def test_health_needs_no_key_and_the_page_is_whole(place: Place) -> None:
    assert httpx.get(place.url + "/healthz").status_code == 200
    assert httpx.get(place.url + "/readyz", timeout=60).json() == {"status": "ready", "model_version": 1}
    for part, kind in (("/", "text/html"), ("/page/style.css", "text/css"), ("/page/app.js", "text/javascript")):
        page = httpx.get(place.url + part)
        assert page.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert not re.search(r"https?://(?!www.w3.org/2000/svg)", page.text)


def test_openais_own_client_works(place: Place) -> None:
    ask: list[ChatCompletionMessageParam] = [{"role": "user", "content": CAPITAL}]
    with openai.OpenAI(base_url=place.url + "/v1", api_key=place.keys["teacher"]) as client:
        assert [model.id for model in client.models.list().data] == ["answerer"]
        reply = client.chat.completions.create(model="answerer", messages=ask)
        chunks = list(client.chat.completions.create(model="answerer", messages=ask, stream=True))
        with pytest.raises(openai.NotFoundError, match="not served here"):
            client.chat.completions.create(model="gpt-4", messages=ask)
    assert reply.choices[0].message.content == "Astana"
    assert (reply.model_extra or {})["memory"]["lessons"][0]["answer"] == "Astana"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Astana"
    assert (chunks[-1].model_extra or {})["memory"]["strategy"] == "copy"


def test_openais_own_client_tells_a_wrong_key(place: Place) -> None:
    client = openai.OpenAI(base_url=place.url + "/v1", api_key="agm_wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_under_a_flood_only_the_api_refuses(place: Place) -> None:
    """Serve's own limits lie above: its proxy refuses in plain text."""
    body = {"messages": [{"role": "user", "content": "Tell me about rivers."}], "strategy": "weights", "max_tokens": 4}

    async def flood() -> list[httpx.Response]:
        headers = {"authorization": f"Bearer {place.keys['asker']}"}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=place.url, headers=headers, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(400)))

    replies = asyncio.run(flood())
    assert {reply.status_code for reply in replies} == {200, 429}
    refused = [reply for reply in replies if reply.status_code == 429]
    assert {reply.json()["error"]["code"] for reply in refused} == {"overloaded"}
    assert {reply.headers["retry-after"] for reply in refused} == {"1"}


def test_options_get_probabilities(place: Place) -> None:
    reply = place.client().ask(CAPITAL, options=["Almaty", "Astana"])
    assert reply.text == "Astana"
    assert reply.raw["memory"]["options"]["Astana"] > 0.9
    reply = place.client().ask("Is Astana the capital of Kazakhstan?", options=["no", "yes"])
    assert (reply.text, reply.strategy) == ("yes", "infer")


def test_rays_exporter_has_the_metrics_of_every_replica(place: Place) -> None:
    place.client().ask(CAPITAL)
    node = ray.nodes()[0]
    exporter = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    told = re.compile(r'^ray_(agm_answers_total|agm_lesson_seq)\{.*application="agm".*replica="\w+"', re.MULTILINE)
    assert eventually(
        lambda: set(told.findall(httpx.get(exporter).text)) == {"agm_answers_total", "agm_lesson_seq"}, 40
    )


def test_the_feedback_reaches_parquet(place: Place) -> None:
    seq = place.client().version()["lesson_seq"]
    assert eventually(lambda: sealed_seq(place.home.feedback_table) >= seq)


def test_a_new_champion_is_taken_over_without_a_failed_request(place: Place) -> None:
    version = place.register(cycle=1)
    seen: list[int] = []
    failures: list[ClientError] = []
    stop = threading.Event()

    def keep_asking(client: Client) -> None:
        while not stop.is_set():
            try:
                seen.append(client.ask(CAPITAL).model_version)
            except ClientError as error:
                failures.append(error)

    askers = [threading.Thread(target=keep_asking, args=(place.client(),)) for _ in range(3)]
    for asker in askers:
        asker.start()
    place.registry.promote(version, cycle=1)
    swapped = eventually(lambda: seen[-1:] == [version])
    stop.set()
    for asker in askers:
        asker.join()
    assert swapped
    assert failures == []
    assert seen[0] == 1
    assert len(seen) >= 20


def test_a_damaged_champion_is_refused_and_a_rollback_keeps_the_lessons(place: Place) -> None:
    client = place.client()
    damaged = place.register(cycle=2)
    header = place.registry.folder(damaged) / HEADER
    header.write_text(json.dumps(json.loads(header.read_text()) | {"tensors_digest": "0"}))
    place.registry.promote(damaged, cycle=2)
    assert eventually(lambda: client.version()["refused_champion"] is not None)
    assert "do not match their recorded digest" in client.version()["refused_champion"]
    assert client.ask(CAPITAL).model_version == damaged - 1

    assert place.registry.rollback() == damaged - 1
    assert place.registry.rollback() == 1
    assert eventually(lambda: client.version()["model_version"] == 1)
    reply = client.ask(CAPITAL)
    assert (reply.text, reply.model_version) == ("Astana", 1)


def test_what_cannot_start_is_named(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("model: {base: 'scratch:tiny'}\n", encoding="utf-8")
    monkeypatch.setenv("AGM_HOME", str(place.home.root))
    with pytest.raises(UserError, match="names model.base = scratch:tiny, the champion of .* rests on package:"):
        serve_command(recipe=other)
    port = int(place.url.rsplit(":", 1)[1])
    with pytest.raises(deploy.DeployError, match=f"serve.port = {port} on 127.0.0.1 is taken"):
        deploy.start(place.home, place.recipe, port=port)
    elsewhere = place.recipe.with_changes({"serve.host": "203.0.113.7"})
    with pytest.raises(deploy.DeployError, match=r"serve.host = '203.0.113.7': nothing can listen there"):
        deploy.start(place.home, elsewhere, port=0)
    greedy = place.recipe.with_changes({"serve.cpus_per_replica": 64.0, "scaling.placement_timeout_s": 1.0})
    with pytest.raises(deploy.DeployError, match="asks for 1 replica.* with 64 CPU each.* the cluster has 2 CPU"):
        deploy.require_room(greedy)
    with pytest.raises(deploy.DeployError, match="serves 'agm' already"):
        deploy.start(place.home, place.recipe, port=0)


def test_a_restarted_endpoint_has_caught_up_before_it_answers(place: Place, tmp_path: Path) -> None:
    deploy.stop()
    with pytest.raises(NoChampion):
        deploy.start(Home(tmp_path).create(), place.recipe, port=0)
    log = EventLog(open_database(place.home.events_url))
    for room in range(WORTH):
        line = LessonLine(question=f"What is the code of room {room}?", answer=f"code {room}")
        record_lesson(log, line, key=Key("ada", "teach"))
    place.url = deploy.start(place.home, place.recipe, port=0).url
    for question, answer in ((CAPITAL, "Astana"), ("What is the code of room 7?", "code 7")):
        reply = place.client().ask(question)
        assert (reply.text, reply.strategy) == (answer, "copy")
    assert count_kept(log.engine) >= WORTH  # so that the next start need not encode them
    log.engine.dispose()
