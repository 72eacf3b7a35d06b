"""The answer cache: each prompt is decoded once, also by another process, and models do not mix."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.evaluate.answers import AnswerCache, CachedAnswer, CachedGenerator
from pipeline.evaluate.protocol import Message, prompt_messages


class Counter:
    """Says how many prompts it has decoded before this one."""

    def __init__(self) -> None:
        self.decoded = 0

    def generate(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int | None = None
    ) -> list[CachedAnswer]:
        start = self.decoded
        self.decoded += len(prompts)
        return [CachedAnswer(str(start + place)) for place, _ in enumerate(prompts)]


def ask(generator: CachedGenerator, *questions: str) -> list[str]:
    return [answer.text for answer in generator.generate([prompt_messages(question) for question in questions])]


def test_a_prompt_is_decoded_once_and_found_by_the_next_run(tmp_path: Path) -> None:
    model = Counter()
    generator = CachedGenerator(model, AnswerCache(tmp_path / "answers.db", "weights-1"))
    assert ask(generator, "a", "b", "a") == ["0", "1", "0"]
    assert (ask(generator, "b", "c"), model.decoded) == (["1", "2"], 3)
    later = Counter()
    assert ask(CachedGenerator(later, AnswerCache(tmp_path / "answers.db", "weights-1")), "c", "a") == ["2", "0"]
    assert later.decoded == 0
    other = Counter()
    assert ask(CachedGenerator(other, AnswerCache(tmp_path / "answers.db", "weights-2")), "c") == ["0"]
    assert other.decoded == 1


def test_many_prompts_are_saved_in_parts(tmp_path: Path) -> None:
    class Tiring(Counter):
        def generate(
            self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int | None = None
        ) -> list[CachedAnswer]:
            if self.decoded >= 256:
                raise KeyboardInterrupt
            return super().generate(prompts, max_new_tokens=max_new_tokens)

    questions = [f"q{number}" for number in range(1000)]
    cache = AnswerCache(tmp_path / "answers.db", "m")
    with pytest.raises(KeyboardInterrupt):
        ask(CachedGenerator(Tiring(), cache), *questions)
    resumed = Counter()
    ask(CachedGenerator(resumed, cache), *questions)
    assert resumed.decoded == 1000 - 256


def test_time_is_measured_on_the_model_itself(tmp_path: Path) -> None:
    model = Counter()
    generator = CachedGenerator(model, AnswerCache(tmp_path / "answers.db", "m"))
    ask(generator, "a")
    with generator.bypassed():
        assert ask(generator, "a") == ["1"]
    assert (ask(generator, "a"), model.decoded) == (["0"], 2)


def _fill(path: Path, name: str) -> None:
    cache = AnswerCache(path, "m")
    for number in range(60):
        cache.save({cache.key(prompt_messages(str(number)), 24): f"{name} {number}"})


def test_processes_that_race_agree_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(path, name)) for name in ("x", "y", "z")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    cache = AnswerCache(path, "m")
    keys = [cache.key(prompt_messages(str(number)), 24) for number in range(60)]
    found = cache.find(keys)
    assert len(found) == 60
    cache.save(dict.fromkeys(keys, "late"))
    assert cache.find(keys) == found
