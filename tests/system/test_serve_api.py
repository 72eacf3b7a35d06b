"""The HTTP API without Ray: streaming, sampling, dialogue, scopes, lessons, limits, metrics, a canary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from pipeline.data.lines import LessonLine
from pipeline.feedback.keys import Key
from pipeline.feedback.records import NewEvent
from pipeline.feedback.sealer import Sealer
from pipeline.memory.types import Viewer
from serve.canary import Canary, write_canary
from serve.client import ClientError
from serve.limits import RateLimiter
from tests.system.local_endpoint import Local, endpoint

QUESTION = "Who wrote the longest of all these questions here?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with endpoint(tmp_path_factory.mktemp("api")) as local:
        yield local


@pytest.fixture(scope="module")
def client(place: Local) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=place.url + "/v1", api_key=place.keys["teacher"], max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, question: str = QUESTION, **options: Any) -> Any:
    messages = options.pop("messages", [{"role": "user", "content": question}])
    return client.chat.completions.create(model="answerer", messages=messages, **options)


def text(reply: Any) -> str:
    return reply.choices[0].message.content or ""


# answers


def test_a_stream_is_the_answer_in_pieces_with_usage_and_citations(client: openai.OpenAI) -> None:
    whole = complete(client)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == text(whole)
    assert len(pieces) > 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].model_extra["memory"]["response_id"] == chunks[0].id
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_request_that_cannot_be_answered_keeps_its_status_when_it_streams(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_prompt_tokens"):
        complete(client, "long " * 700, stream=True)


def test_length_and_stop_strings(client: openai.OpenAI) -> None:
    short = complete(client, max_tokens=3)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")
    whole = text(complete(client))
    stop = whole[len(whole) // 2]
    stopped = complete(client, stop=[stop, "never there"])
    assert (text(stopped), stopped.choices[0].finish_reason) == (whole.partition(stop)[0].strip(), "stop")


def test_sampling_is_repeatable_by_its_seed(client: openai.OpenAI) -> None:
    greedy = text(complete(client))
    hot = [text(complete(client, temperature=1.8, seed=seed)) for seed in (1, 1, 2)]
    assert hot[0] == hot[1]
    assert len({greedy, hot[0], hot[2]}) == 3
    assert text(complete(client, temperature=0)) == greedy
    assert complete(client, seed=1).model_extra["memory"]["notes"] == ["seed has no effect without temperature"]


def test_earlier_turns_matter(client: openai.OpenAI) -> None:
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello, Sir."}]
    asked = {"role": "user", "content": QUESTION}
    alone = complete(client)
    after = complete(client, messages=[*turns, asked])
    assert text(after) != text(alone)
    assert after.usage.prompt_tokens > alone.usage.prompt_tokens
    assert text(complete(client, messages=[{"role": "developer", "content": "Shout."}, asked])) != text(alone)


def test_store_is_written_down_with_the_answer_and_is_off_by_default(client: openai.OpenAI, place: Local) -> None:
    kept, silent = complete(client, store=True), complete(client)
    answers = place.service.log.responses([kept.id, silent.id])
    assert answers[kept.id].body.get("store") is True
    assert "store" not in answers[silent.id].body


def test_a_question_that_leans_on_an_earlier_turn_is_answered_and_corrected_as_what_it_means(
    place: Local, client: openai.OpenAI
) -> None:
    before = [{"role": "user", "content": "What is the capital of Spain?"}, {"role": "assistant", "content": "Madrid"}]
    asked = [*before, {"role": "user", "content": "And of Burundi?"}]
    unknown = complete(client, messages=asked, max_tokens=4)
    assert unknown.model_extra["memory"]["question"] == "What is the capital of Burundi?"
    with place.client() as teacher:
        teacher.correct(unknown.id, "Gitega")
        again = complete(client, messages=asked)
        assert (text(again), again.model_extra["memory"]["strategy"]) == ("Gitega", "copy")
        assert teacher.ask("What is the capital of Burundi?").text == "Gitega"
        assert [lesson["question"] for lesson in teacher.lessons("Burundi")] == ["What is the capital of Burundi?"]


def test_earlier_turns_change_nothing_of_what_a_question_of_its_own_reads(place: Local, client: openai.OpenAI) -> None:
    with place.client() as teacher:
        teacher.teach(LessonLine(question="What is the capital of Palau?", answer="Ngerulmud"))
    before = [{"role": "user", "content": "What is the capital of Spain?"}, {"role": "assistant", "content": "Madrid"}]
    for question in ("What is the capital of Palau?", "Which city governs Palau?", "What is the capital of Fiji?"):
        asked = {"role": "user", "content": question}
        alone, after = (complete(client, messages=[*turns, asked], max_tokens=4) for turns in ([], before))
        read, read_after = alone.model_extra["memory"], after.model_extra["memory"]
        for part in ("question", "lessons", "null_weight", "strategy", "probabilities"):
            assert read[part] == read_after[part]


def test_the_request_id_is_kept(place: Local) -> None:
    headers = {"authorization": f"Bearer {place.keys['asker']}", "x-request-id": "mine-7"}
    body = {"messages": [{"role": "user", "content": "Who?"}]}
    reply = httpx.post(place.url + "/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert reply.headers["x-request-id"] == "mine-7"
    with place.client() as client:
        assert client.lineage(reply.json()["id"])["answer"]["body"]["request_id"] == "mine-7"


# lessons


def test_a_session_lesson_is_read_in_its_session_alone(place: Local) -> None:
    question = "What is the password of this meeting?"
    with place.client("asker") as asker:
        before = asker.ask(question, session="monday")
        asker.correct(before.response_id, "swordfish", session="monday")
        assert asker.ask(question, session="monday", user="another").text == "swordfish"
        assert asker.ask(question, session="tuesday").lessons == []
        assert asker.ask(question).lessons == []


def test_a_teachers_session_lesson_leaves_the_lesson_of_everybody_as_it_is(place: Local) -> None:
    question = "Which room is the meeting in?"
    with place.client() as teacher:
        teacher.teach(LessonLine(question=question, answer="Room 1"))
        answer = teacher.ask(question, session="friday")
        teacher.correct(answer.response_id, "Room 2", session="friday")
        assert teacher.ask(question, session="friday").text == "Room 2"
        assert teacher.ask(question).text == "Room 1"


def test_lessons_are_paged_searched_and_amended(place: Local) -> None:
    with place.client() as teacher, place.client("asker") as asker:
        taught = [teacher.teach(LessonLine(question=f"Who sits at desk {n}?", answer=f"Person {n}")) for n in range(5)]
        page = teacher._call("GET", "/v1/lessons", query={"search": "DESK", "limit": 2, "offset": 2})
        assert (page["total"], page["has_more"], len(page["data"])) == (5, True, 2)
        assert [lesson["answer"] for lesson in page["data"]] == ["Person 2", "Person 1"]
        changed = teacher.amend(taught[3]["lesson_id"], "Nobody", ["Whose desk is number three?"])
        assert changed["lesson_id"] == taught[3]["lesson_id"]
        found = teacher._call("GET", f"/v1/lessons/{taught[3]['lesson_id']}")
        assert (found["answer"], found["previous"]) == ("Nobody", "Person 3")
        assert found["paraphrases"] == ["Whose desk is number three?"]
        assert teacher.ask("Who sits at desk 3?").text == "Nobody"
        for refused, status in (
            (lambda: asker.amend(taught[3]["lesson_id"], "Me"), 403),
            (lambda: teacher.amend("les_none", "Me"), 404),
            (lambda: teacher.amend(taught[3]["lesson_id"]), 422),
        ):
            with pytest.raises(ClientError) as error:
                refused()
            assert error.value.status == status


def test_tenants_never_mix(place: Local) -> None:
    question = "What is the name of our secret project?"
    with place.client() as ours, place.client("stranger") as stranger:
        mine = ours.teach(LessonLine(question=question, answer="Nimbus"))
        answer = ours.ask(question)
        assert answer.text == "Nimbus"
        theirs = stranger.ask(question)
        assert theirs.lessons == []
        assert "Nimbus" not in json.dumps(theirs.raw)
        assert stranger.lessons("secret") == []
        for refused in (
            lambda: stranger._call("GET", f"/v1/lessons/{mine['lesson_id']}"),
            lambda: stranger.amend(mine["lesson_id"], "Cirrus"),
            lambda: stranger.retract(mine["lesson_id"]),
            lambda: stranger.lineage(answer.response_id),
            lambda: stranger.correct(answer.response_id, "Cirrus"),
        ):
            with pytest.raises(ClientError) as error:
                refused()
            assert error.value.status == 404
        stranger.teach(LessonLine(question=question, answer="Cirrus"))
        assert (ours.ask(question).text, stranger.ask(question).text) == ("Nimbus", "Cirrus")


# operating


def test_metrics_tell_what_happened(place: Local) -> None:
    with place.client() as client:
        answer = client.ask("Who?", strategy="weights")
        client.feedback(answer.response_id, "rating", -0.5)
    reply = httpx.get(place.url + "/metrics", headers={"authorization": f"Bearer {place.keys['asker']}"})
    lines = dict(line.rsplit(" ", 1) for line in reply.text.splitlines() if not line.startswith("#"))
    assert float(lines['agm_answers_total{model_version="1",strategy="weights"}']) >= 1
    assert float(lines['agm_ratings_total{model_version="1",sign="-"}']) == 0.5
    assert float(lines["agm_tokens_total"]) >= 1
    assert float(lines["agm_running_requests"]) == 0
    assert float(lines["agm_model_version"]) == 1


def test_a_canary_answers_its_share_of_sessions_and_each_stays(place: Local) -> None:
    canary = Canary(version=2, share=0.3)
    sessions = [f"session {n}" for n in range(40)]
    chosen = {name for name in sessions if canary.takes(Viewer(session=name))}
    assert 4 <= len(chosen) <= 20
    write_canary(place.home, canary)
    with place.client() as client:
        _until(lambda: client.version()["canary"] == {"version": 2, "share": 0.3})
        answered = {name: client.ask("Who?", session=name, strategy="weights").model_version for name in sessions[:12]}
        assert answered == {name: 2 if name in chosen else 1 for name in sessions[:12]}
        write_canary(place.home, None)
        _until(lambda: client.version()["canary"] is None)
        assert {client.ask("Who?", session=name, strategy="weights").model_version for name in chosen} == {1}


def test_a_key_that_asks_too_often_is_told_when_to_come_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    with endpoint(tmp_path_factory.mktemp("limited"), requests_per_minute=20) as limited:
        headers = {"authorization": f"Bearer {limited.keys['asker']}"}
        replies = [httpx.get(limited.url + "/v1/models", headers=headers) for _ in range(4)]
        other = httpx.get(limited.url + "/v1/models", headers={"authorization": f"Bearer {limited.keys['admin']}"})
    assert [reply.status_code for reply in replies] == [200, 200, 429, 429]
    assert replies[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(replies[2].headers["retry-after"]) <= 3
    assert other.status_code == 200


def test_feedback_that_storage_cannot_take_now_is_refused_and_not_lost(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with endpoint(tmp_path_factory.mktemp("backlog")) as behind:
        log, headers = behind.service.log, {"authorization": f"Bearer {behind.keys['teacher']}"}
        lesson = {"question": "Who leads NATO?", "answer": "Mark Rutte", "feedback_id": "fb-1"}

        def teach() -> httpx.Response:
            return httpx.post(behind.url + "/v1/lessons", headers=headers, json=lesson)

        log.append([NewEvent(kind="answer", body={"answer": "x"}, source="ada", role="ask")])
        Sealer(log, behind.home.feedback_table).drain()
        log.append([NewEvent(kind="answer", body={"answer": "y"}, source="ada", role="ask")])
        log.max_backlog = 0
        refused = teach()
        Sealer(log, behind.home.feedback_table).drain()
        taken = teach()
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "storage_behind"
    assert refused.json()["error"]["type"] == "server_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert taken.status_code == 200


def test_a_bucket_fills_with_time() -> None:
    now = [0.0]
    limiter, key = RateLimiter(60, clock=lambda: now[0]), Key("bob", "ask")
    assert [limiter.wait_s(key) for _ in range(6)] == [0] * 6
    assert limiter.wait_s(key) == pytest.approx(1)
    now[0] += 2.5
    assert [limiter.wait_s(key) > 0 for _ in range(3)] == [False, False, True]
    assert limiter.wait_s(Key("bob", "ask", "elsewhere")) == 0


def _until(holds: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)
