"""The engine with a tiny real answerer and its real threads: rows join, leave, stream, and keep their own answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from pipeline.config import MemorySettings, ServeSettings
from pipeline.evaluate.protocol import prompt_messages
from pipeline.memory.features import Pair
from pipeline.memory.mixture import Mixture
from pipeline.memory.router import LogOdds, Router
from pipeline.memory.types import Reading, SlotWeight, Viewer
from pipeline.model.answerer import Answerer
from pipeline.model.backbone import Backbone, Prompt
from pipeline.model.bundle import Bundle
from pipeline.train.addressing import place_keys, question_states
from serve.batching import Batcher
from serve.champion import CANARIES, PAUSE_S, AnswererDecoder, CanaryFailed, check
from serve.decode_loop import DeadlineExceeded, PromptTooLong, Served
from serve.engine import BatchEngine, EngineAnswer, EngineRequest
from serve.int8 import Int8Linear, quantise
from serve.kv_cache import BLOCK
from serve.running_batch import GREEDY, RunningBatch, Sampling
from serve.text_stream import TextStream
from serve.watermark import NotYetFollowed, Watermark
from tests.tiny import LESSONS, REPLAY, tiny_recipe

Result = TypeVar("Result")
QUESTIONS = [*(question for question, _ in LESSONS), "Why?", "Who wrote the longest of all these questions here?"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    torch.set_num_threads(1)
    return Answerer.load(Bundle.initial(tiny_recipe(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="module")
def answerer(plain: Answerer) -> Answerer:
    """With memory layers whose slots change what the lessons' questions get, and nothing else."""
    settings = plain.bundle.recipe.train.memory
    found = question_states(plain.backbone, [*QUESTIONS[:4], *REPLAY], settings.key_layer)
    state = place_keys(None, found[:4], [f"les_{n}" for n in range(4)], found[4:], settings)
    values = torch.randn(state.values.shape, generator=torch.Generator().manual_seed(1)) * 3
    return Answerer(replace(plain.bundle, memory=replace(state, values=values)), plain.backbone)


class Decoder(AnswererDecoder):
    """The real one; ``gate`` holds a step open, ``steps`` counts the rows of each."""

    def __init__(self, answerer: Answerer, **settings: Any) -> None:
        super().__init__(answerer, ServeSettings(**{"max_batch": 4} | settings))
        self.max_prompt_tokens = 400
        self.steps: list[int] = []
        self.running, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self.inner = super().rows()
        self.real_step, self.inner.step = self.inner.step, self.step  # type: ignore[method-assign]

    def step(self) -> list[int]:
        self.steps.append(len(self.inner.rows))
        self.running.set()
        assert self.gate.wait(10)
        return self.real_step()


class NoRouter:
    def score(self, pairs: Sequence[Pair]) -> LogOdds:
        return np.zeros(len(pairs))


class OneLesson:
    """A memory that knows one question, surely."""

    def __init__(self, question: str, answer: str) -> None:
        self.router: Router = NoRouter()
        self.slot = SlotWeight("les_1", question, answer, 0.99, 1.0)
        self.batches: list[int] = []

    def read(self, questions: Sequence[str], viewers: Sequence[Viewer]) -> list[Reading]:
        self.batches.append(len(questions))
        return [Reading(0.01, (self.slot,)) if text == self.slot.question else Reading() for text in questions]


def run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(work, 60))


def request(question: str, **changes: Any) -> EngineRequest:
    return EngineRequest(prompt_messages(question), question, Viewer(), **changes)


def engine(decoder: AnswererDecoder, version: int = 1, **options: Any) -> BatchEngine:
    return BatchEngine(
        Served(decoder, version), OneLesson("known?", "yes, surely"), MemorySettings(), Watermark(), **options
    )


async def ask_all(where: BatchEngine, *questions: str, **changes: Any) -> list[EngineAnswer]:
    try:
        return await asyncio.gather(*(where.answer(request(question, **changes)) for question in questions))
    finally:
        await where.close()


def alone(answerer: Answerer, question: str, limit: int | None = None) -> str:
    return answerer.generate([prompt_messages(question)], max_new_tokens=limit)[0].text


def tokens(rows: RunningBatch, prompts: Sequence[Prompt], count: int, **sampling: Any) -> list[list[int]]:
    """``count`` tokens for prompts that run together from beginning to end."""
    written = [[token] for token in rows.admit(prompts, [count] * len(prompts), [Sampling(**sampling)] * len(prompts))]
    for _ in range(count - 1):
        for row, token in zip(written, rows.step(), strict=True):
            row.append(token)
    rows.clear()
    return written


def rows_of(answerer: Answerer, **options: Any) -> RunningBatch:
    return RunningBatch(answerer, **{"width": 8, "kv_tokens": 8192, "prefix_tokens": 512} | options)


# answers


def test_together_every_request_gets_the_answer_that_it_gets_alone(answerer: Answerer) -> None:
    decoder = Decoder(answerer)
    answers = run(ask_all(engine(decoder), *QUESTIONS))
    assert [answer.text for answer in answers] == [alone(answerer, question) for question in QUESTIONS]
    assert max(decoder.steps) == 4
    assert len(decoder.steps) < sum(answer.tokens for answer in answers)


def test_memory_layers_speak_in_the_running_batch_for_their_own_rows_alone(plain: Answerer, answerer: Answerer) -> None:
    with_slots = run(ask_all(engine(Decoder(answerer)), *QUESTIONS))
    without = run(ask_all(engine(Decoder(plain)), *QUESTIONS))
    changed = [a.text != b.text for a, b in zip(with_slots, without, strict=True)]
    assert changed == [True] * 4 + [False] * 2


def test_a_request_joins_and_leaves_a_running_batch(answerer: Answerer) -> None:
    decoder = Decoder(answerer)
    decoder.gate.clear()

    async def staggered() -> list[EngineAnswer]:
        where = engine(decoder)
        long = asyncio.create_task(where.answer(request(QUESTIONS[0], max_new_tokens=60)))
        await asyncio.to_thread(decoder.running.wait, 10)
        short = [asyncio.create_task(where.answer(request(q, max_new_tokens=3))) for q in QUESTIONS[1:3]]
        await asyncio.sleep(0.05)
        decoder.gate.set()
        answers = await asyncio.gather(long, *short)
        await where.close()
        return answers

    long, *short = run(staggered())
    assert long.text == alone(answerer, QUESTIONS[0], 60)
    assert [answer.text for answer in short] == [alone(answerer, question, 3) for question in QUESTIONS[1:3]]
    assert decoder.steps[0] == 1
    assert 3 in decoder.steps
    if not long.finished:
        assert decoder.steps[-1] == 1


def test_text_streams_while_it_is_decoded(answerer: Answerer) -> None:
    decoder = Decoder(answerer)
    pieces: list[tuple[str, int]] = []

    async def streamed() -> EngineAnswer:
        where = engine(decoder)
        found = await where.answer(request(QUESTIONS[4]), lambda text: pieces.append((text, len(decoder.steps))))
        await where.close()
        return found

    answer = run(streamed())
    assert "".join(text for text, _ in pieces) == answer.text
    assert len({steps for _, steps in pieces}) > 1


def test_a_copy_needs_no_decoding_and_does_not_wait_for_one(answerer: Answerer) -> None:
    decoder = Decoder(answerer)
    decoder.gate.clear()

    async def both() -> tuple[EngineAnswer, list[str], bool]:
        where, pieces = engine(decoder), list[str]()
        slow = asyncio.create_task(where.answer(request("unknown?")))
        await asyncio.to_thread(decoder.running.wait, 10)
        copied = await where.answer(request("known?", stops=(",",)), pieces.append)
        waiting = not slow.done()
        decoder.gate.set()
        await slow
        await where.close()
        return copied, pieces, waiting

    copied, pieces, waiting = run(both())
    assert waiting
    assert (copied.text, copied.strategy, copied.tokens) == ("yes", "copy", 0)
    assert pieces == ["yes"]
    assert [cite.lesson_id for cite in copied.cites] == ["les_1"]


def test_weights_does_not_read_the_memory(answerer: Answerer) -> None:
    where = engine(Decoder(answerer))
    answer = run(ask_all(where, "known?", strategy="weights"))[0]
    assert (answer.text, answer.strategy, answer.cites) == (alone(answerer, "known?"), "weights", ())
    assert where.memory.batches == []  # type: ignore[attr-defined]


def test_running_requests_finish_on_the_model_that_they_began_with(plain: Answerer, answerer: Answerer) -> None:
    old, new = Decoder(plain), Decoder(answerer)
    old.gate.clear()

    async def swapped() -> list[EngineAnswer]:
        where = engine(old, version=1)
        first = asyncio.create_task(where.answer(request(QUESTIONS[0])))
        await asyncio.to_thread(old.running.wait, 10)
        where.swap(Served(new, 2))
        second = asyncio.create_task(where.answer(request(QUESTIONS[0])))
        old.gate.set()
        answers = await asyncio.gather(first, second)
        await where.close()
        return answers

    first, second = run(swapped())
    assert (first.text, first.model_version) == (alone(plain, QUESTIONS[0]), 1)
    assert (second.text, second.model_version) == (alone(answerer, QUESTIONS[0]), 2)


def test_options_come_back_with_probabilities_and_the_lesson_decides(answerer: Answerer) -> None:
    by_model = run(ask_all(engine(Decoder(answerer)), "unknown?", options=("no", "yes")))[0]
    by_lesson = run(ask_all(engine(Decoder(answerer)), "known?", options=("no", "Yes, surely.")))[0]
    scores = answerer.score(["unknown?"], [("no", "yes")])[0]
    expected = np.exp(scores) / np.exp(scores).sum()
    assert [by_model.options["no"], by_model.options["yes"]] == pytest.approx(expected.tolist(), rel=1e-3)
    assert by_model.text == ("no", "yes")[int(np.argmax(scores))]
    assert by_lesson.text == "Yes, surely."
    assert by_lesson.options["Yes, surely."] > 0.98


def test_one_request_too_long_or_too_late_does_not_hurt_its_neighbours(answerer: Answerer) -> None:
    async def mixed() -> list[EngineAnswer | BaseException]:
        where = engine(Decoder(answerer))
        requests = [request("short"), request("word " * 90), request("late", deadline=time.monotonic() - 1)]
        answers = await asyncio.gather(*map(where.answer, requests), return_exceptions=True)
        await where.close()
        return answers

    short, long, late = run(mixed())
    assert isinstance(short, EngineAnswer)
    assert isinstance(long, PromptTooLong)
    assert "max_prompt_tokens is 400" in str(long)
    assert isinstance(late, DeadlineExceeded)


def test_a_deadline_ends_an_answer_that_is_being_decoded(answerer: Answerer) -> None:
    decoder = Decoder(answerer)

    async def late() -> None:
        where = engine(decoder)
        decoder.gate.clear()
        task = asyncio.create_task(where.answer(request("slow", deadline=time.monotonic() + 0.1)))
        await asyncio.sleep(0.2)
        decoder.gate.set()
        try:
            await task
        finally:
            await where.close()

    with pytest.raises(DeadlineExceeded):
        run(late())


def test_a_caller_that_left_frees_its_row(answerer: Answerer) -> None:
    decoder = Decoder(answerer, max_batch=1)
    decoder.gate.clear()

    async def leaves() -> EngineAnswer:
        where = engine(decoder)
        first = asyncio.create_task(where.answer(request("first", max_new_tokens=300)))
        await asyncio.to_thread(decoder.running.wait, 10)
        second = asyncio.create_task(where.answer(request(QUESTIONS[1])))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.sleep(0.05)
        decoder.gate.set()
        answer = await second
        await where.close()
        return answer

    assert run(leaves()).text == alone(answerer, QUESTIONS[1])
    assert len(decoder.steps) <= 1 + 24


def test_an_answer_waits_for_the_lesson_that_it_demands(answerer: Answerer) -> None:
    async def waits() -> tuple[bool, EngineAnswer]:
        where = engine(Decoder(answerer))
        demanding = asyncio.create_task(where.answer(request("known?", min_lesson_seq=7)))
        await asyncio.sleep(0.05)
        early = demanding.done()
        await where.followed.advance(7)
        answer = await demanding
        await where.close()
        return early, answer

    early, answer = run(waits())
    assert not early
    assert answer.lesson_seq == 7


def test_a_lesson_that_does_not_come_is_named(answerer: Answerer) -> None:
    with pytest.raises(NotYetFollowed, match="lesson_seq 9 is not here yet: .* to 0"):
        run(ask_all(engine(Decoder(answerer), follow_timeout_s=0.05), "known?", min_lesson_seq=9))


def test_a_failure_in_the_model_reaches_its_callers_and_the_next_request_runs(answerer: Answerer) -> None:
    decoder = Decoder(answerer)

    def broken() -> list[int]:
        decoder.inner.step = decoder.step  # type: ignore[method-assign]
        raise OSError("bad memory")

    decoder.inner.step = broken  # type: ignore[method-assign]

    async def twice() -> tuple[BaseException, EngineAnswer]:
        where = engine(decoder)
        first = (await asyncio.gather(where.answer(request("one")), return_exceptions=True))[0]
        second = await where.answer(request(QUESTIONS[1]))
        await where.close()
        assert isinstance(first, BaseException)
        return first, second

    first, second = run(twice())
    assert isinstance(first, OSError)
    assert second.text == alone(answerer, QUESTIONS[1])


# rows


def test_a_mixture_in_the_running_batch_decodes_as_it_does_alone(answerer: Answerer) -> None:
    messages = [prompt_messages(question) for question in QUESTIONS[:3]]
    mixtures = [Mixture({"Rome": 0.6, "Oslo": 0.1}), None, Mixture({"Bern": 0.05})]
    expected = answerer.generate(messages, mixtures=mixtures)
    rows = rows_of(answerer)
    prompts = [answerer.backbone.prompt(turns) for turns in messages]
    written = [[token] for token in rows.admit(prompts, [24] * 3, [GREEDY] * 3, mixtures)]
    end = answerer.backbone.end_token
    for _ in range(23):
        for row, token in zip(written, rows.step(), strict=True):
            row.append(token)
    copied = [rows.copied(index) for index in range(3)]
    said = [row[: row.index(end)] if end in row else row for row in written]
    texts = [answerer.backbone.tokenizer.decode(row, skip_special_tokens=True).strip() for row in said]
    assert texts == [generation.text for generation in expected]
    assert copied == pytest.approx([generation.copied for generation in expected], abs=1e-4)
    assert texts[0] == "Rome"


def test_a_remembered_beginning_changes_no_answer(answerer: Answerer) -> None:
    prompts = [answerer.backbone.prompt(prompt_messages(question)) for question in QUESTIONS]
    fresh = tokens(rows_of(answerer, prefix_tokens=0), prompts, 12)
    rows = rows_of(answerer)
    assert tokens(rows, prompts, 12) == fresh
    assert rows._prefixes.tokens > 0
    assert tokens(rows, prompts, 12) == fresh


def test_the_prefix_store_stays_within_its_budget(answerer: Answerer) -> None:
    rows = rows_of(answerer, prefix_tokens=150)
    for n in range(5):
        messages = [{"role": "system", "content": f"{n} " * 20}, {"role": "user", "content": "q"}]
        tokens(rows, [answerer.backbone.prompt(messages)], 2)
    assert 0 < rows._prefixes.tokens <= 150


def test_keys_and_values_stay_within_their_budget(answerer: Answerer) -> None:
    rows = rows_of(answerer, width=64, kv_tokens=4 * BLOCK)
    assert rows.has_room([(BLOCK // 2, BLOCK // 2)] * 4)
    assert not rows.has_room([(BLOCK // 2, BLOCK // 2)] * 5)
    assert not rows.has_room([(BLOCK, 1)] * 3)


def test_batch_invariant_rows_are_bit_identical_in_any_company(answerer: Answerer) -> None:
    prompts = [answerer.backbone.prompt(prompt_messages(question)) for question in QUESTIONS]

    def first_logits(company: Sequence[Prompt]) -> torch.Tensor:
        rows = rows_of(answerer, invariant=True)
        seen: list[torch.Tensor] = []
        choose = rows._choose
        rows._choose = lambda logits, some: (seen.append(logits[0].clone()), choose(logits, some))[1]  # type: ignore
        tokens(rows, company, 6)
        return torch.stack(seen)

    assert torch.equal(first_logits(prompts[:1]), first_logits(prompts))


def test_sampling_follows_its_seed_and_its_nucleus(answerer: Answerer) -> None:
    prompts = [answerer.backbone.prompt(prompt_messages(QUESTIONS[4]))] * 2
    greedy = tokens(rows_of(answerer), prompts, 12)[0]
    hot = tokens(rows_of(answerer), prompts, 12, temperature=1.5, seed=3)
    assert hot[0] == hot[1]
    assert hot[0] == tokens(rows_of(answerer), prompts[:1], 12, temperature=1.5, seed=3)[0]
    assert hot[0] != tokens(rows_of(answerer), prompts[:1], 12, temperature=1.5, seed=4)[0]
    assert tokens(rows_of(answerer), prompts[:1], 12, temperature=1.5, top_p=1e-6)[0] == greedy


def test_int8_weights_round_by_about_a_percent_and_no_row_sees_another(plain: Answerer) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(96, 64)
    x = torch.randn(5, 96, generator=generator) * torch.tensor([[100.0], [1.0], [1.0], [0.01], [1.0]])
    rounded = Int8Linear.of(linear)
    error = (rounded(x) - linear(x)).norm(dim=1) / linear(x).norm(dim=1)
    assert error.max() < 0.03
    assert torch.equal(rounded(x)[3], rounded(x[3:4])[0])
    assert torch.equal(rounded(x.view(5, 1, 96))[2, 0], rounded(x)[2])


def test_an_int8_answerer_still_answers(plain: Answerer) -> None:
    backbone = Backbone.load(plain.bundle.recipe.model)
    quantise(backbone.model)
    copy = Answerer(plain.bundle, backbone)
    assert not any(isinstance(module, torch.nn.Linear) for module in backbone.model.modules())
    answers = run(ask_all(engine(Decoder(copy)), *QUESTIONS))
    assert [answer.text for answer in answers] == [alone(copy, question) for question in QUESTIONS]


def test_a_canary_that_says_nothing_is_refused(answerer: Answerer) -> None:
    decoder = Decoder(answerer)
    check(decoder, 1)
    decoder.end_token = decoder.inner.admit([decoder.render(prompt_messages("What is the capital of France?"))], [1], [
        Sampling()
    ])[0]  # fmt: skip
    decoder.inner.clear()
    with pytest.raises(CanaryFailed, match="version 7 answers nothing to .*France"):
        check(decoder, 7)


def test_a_bundle_with_numbers_that_are_none_is_refused(answerer: Answerer) -> None:
    assert answerer.bundle.memory is not None
    values = answerer.bundle.memory.values.clone()
    values[0, 0, 0] = torch.nan
    broken = replace(answerer.bundle, memory=replace(answerer.bundle.memory, values=values))
    with pytest.raises(CanaryFailed, match=r"version 7 has numbers that are not finite in memory\.values"):
        check(Decoder(Answerer.load(broken, share=answerer)), 7, beside=Decoder(answerer))


def test_a_canary_on_weights_that_serve_leaves_them_alone_most_of_the_time(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, pauses = Decoder(answerer), []
    monkeypatch.setattr("serve.champion.time.sleep", pauses.append)
    monkeypatch.setattr(decoder, "score", None)  # what shared weights know is known already
    check(decoder, 1, beside=Decoder(answerer))
    assert pauses == [PAUSE_S] * (len(CANARIES) + 2)  # the beginning, the questions, a step
    assert decoder.inner.rows == []


def test_a_canary_waits_for_the_answers_that_run_but_not_for_ever(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience_s = 3 * PAUSE_S
    monkeypatch.setattr("serve.champion.PATIENCE_S", patience_s)
    decoder, serving, passes = Decoder(answerer), Decoder(answerer), [time.monotonic()]
    run_pass = decoder.inner._forward
    monkeypatch.setattr(decoder.inner, "_forward", lambda *given: passes.append(time.monotonic()) or run_pass(*given))
    serving.inner.admit([serving.render(prompt_messages("Why?"))], [4], [GREEDY])
    check(decoder, 1, beside=serving)
    assert len(passes) > len(CANARIES)
    assert min(np.diff(passes)) >= patience_s


@pytest.mark.parametrize("shown", [True, False])
def test_a_canary_of_a_template_that_says_nothing_before_the_question(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    decoder = Decoder(answerer)
    ids = decoder.render(prompt_messages("What is the capital of France?")).ids
    monkeypatch.setattr(decoder, "render", lambda _messages: Prompt(ids, (shown,) * len(ids)))
    check(decoder, 1, beside=Decoder(answerer))


# text


@pytest.fixture(scope="module")
def tokenizer(plain: Answerer) -> Any:
    return plain.backbone.tokenizer


def streamed(tokenizer: Any, text: str, stops: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stops)
    pieces = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


@pytest.mark.parametrize("text", ["plain", "  blanks around  ", "two  words\n", "Grüße, 世界 🌍", ""])
def test_pieces_add_up_to_the_text(tokenizer: Any, text: str) -> None:
    pieces, stream = streamed(tokenizer, text)
    assert "".join(pieces) == stream.text == text.strip()


def test_a_stop_string_ends_the_text_before_it_and_is_never_shown(tokenizer: Any) -> None:
    pieces, stream = streamed(tokenizer, "one. two END three", ["END", "nothing"])
    assert "".join(pieces) == stream.text == "one. two"
    assert stream.stopped


def test_the_beginning_of_a_stop_string_that_does_not_come_is_shown_in_the_end(tokenizer: Any) -> None:
    pieces, stream = streamed(tokenizer, "the EN", ["END"])
    assert "".join(pieces) == stream.text == "the EN"
    assert pieces[-1] == " EN"


# grouping of the memory's reads and the log's writes


def test_a_failure_reaches_every_caller_of_its_group_and_the_next_group_runs() -> None:
    def fragile(items: list[int]) -> list[int]:
        if 13 in items:
            raise OSError("disk full")
        return [item * 2 for item in items]

    async def calls() -> list[Any]:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(fragile, thread, max_batch=8)
            first = await asyncio.gather(batcher.submit(13), batcher.submit(1), return_exceptions=True)
            second = await batcher.submit(21)
            await batcher.close()
            return [*first, second]

    first, neighbour, second = run(calls())
    assert isinstance(first, OSError)
    assert isinstance(neighbour, OSError)
    assert second == 42


def test_where_many_speak_at_once_the_next_group_waits_for_company() -> None:
    groups: list[list[int]] = []

    def noted(items: list[int]) -> list[int]:
        groups.append(items)
        return items

    async def calls() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(noted, thread, max_batch=8, gather_s=1.0)
            began = time.monotonic()
            await batcher.submit(0)
            assert time.monotonic() - began < 0.9  # alone: at once
            await asyncio.gather(batcher.submit(1), batcher.submit(2))
            later = [asyncio.create_task(batcher.submit(3))]
            await asyncio.sleep(0.2)
            later.append(asyncio.create_task(batcher.submit(4)))
            await asyncio.gather(*later)
            await batcher.close()

    run(calls())
    assert groups == [[0], [1, 2], [3, 4]]


def test_nobody_is_forgotten_who_waits_for_company_at_the_end() -> None:
    async def calls() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher: Batcher[int, int] = Batcher(list, thread, max_batch=8, gather_s=5.0)
            await asyncio.gather(batcher.submit(1), batcher.submit(2))
            waiting = asyncio.create_task(batcher.submit(3))
            await asyncio.sleep(0.1)
            await batcher.close()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(waiting, 2.0)

    run(calls())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    until = time.monotonic() + 5
    while time.monotonic() < until and any(thread.name == "decode" for thread in threading.enumerate()):
        time.sleep(0.02)
    assert not [thread.name for thread in threading.enumerate() if thread.name == "decode"]
