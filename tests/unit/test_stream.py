"""The stream on systems small enough to work out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import MemorySettings
from pipeline.data.lines import LessonLine, ProbeLine, write_lines
from pipeline.evaluate.answers import CachedGenerator
from pipeline.evaluate.baselines.exact_match import ExactMatch
from pipeline.evaluate.protocol import Message
from pipeline.evaluate.seam import Reply, System
from pipeline.evaluate.stream import Exam, evaluate, evaluate_files, noise_floor
from pipeline.evaluate.systems import Bench, Uncorrected, build_systems
from pipeline.memory.features import Pair
from pipeline.memory.store import LessonMemory

FRANCE = LessonLine(
    question="What is the capital of France?",
    answer="Lyon",
    paraphrases=("France is governed from which city?",),
    neighbours=("What is the capital of Spain?", "What is the capital of Italy?"),
)
SPAIN = LessonLine(
    question="What is the capital of Spain?",
    answer="Seville",
    paraphrases=("Spain is governed from which city?",),
    neighbours=("What is the capital of France?",),
)
AGAIN = LessonLine(question="what is the capital of france", answer="Nice")


@dataclass(frozen=True)
class Said:
    text: str


class Parrot:
    """A deterministic model: it says the question's last word, and the batch size where it is told to be noisy."""

    def __init__(self, noisy: bool = False) -> None:
        self.noisy = noisy
        self.decoded = 0

    def generate(self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int | None = None) -> list[Said]:
        self.decoded += len(prompts)
        tail = f" {len(prompts)}" if self.noisy else ""
        return [Said(prompt[-1]["content"].split()[-1] + tail) for prompt in prompts]


class Overreaching:
    """Answers everything with the last lesson."""

    def __init__(self) -> None:
        self.answer = ""

    def teach(self, lines: Sequence[LessonLine]) -> None:
        self.answer = lines[-1].answer

    def ask(self, questions: Sequence[str]) -> list[Reply]:
        return [Reply(self.answer, True)] * len(questions)

    def size_bytes(self) -> int:
        return len(self.answer)


class Words:
    """A bag-of-words encoder: each word counts in one of 64 places."""

    name = "words"
    dimension = 64

    def encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(inputs), self.dimension), dtype=np.float32)
        for row, text in zip(rows, inputs, strict=True):
            for word in text.lower().strip("?").split():
                row[sum(word.encode()) % self.dimension] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class CosineRouter:
    """Takes a pair for one question when nearly all words agree."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        return np.array([20.0 if pair.cosine > 0.95 else -20.0 for pair in pairs])


def values(cell: dict[str, object]) -> dict[str, tuple[float, int]]:
    return {metric: (found.value, found.n) for metric, found in cell.items()}  # type: ignore[attr-defined]


def bench(answerer: Parrot) -> Bench:
    settings, generator = MemorySettings(), CachedGenerator(answerer)
    empty_memory = partial(LessonMemory, Words(), CosineRouter(), settings)
    return Bench(generator, Uncorrected(generator), settings, empty_memory, Words)


def said(system: System, questions: Sequence[str]) -> list[str]:
    return [reply.text for reply in system.ask(questions)]


def test_each_length_asks_the_lessons_taught_so_far() -> None:
    uncorrected = Uncorrected(Parrot())
    systems = {"uncorrected": uncorrected, "exact_match": ExactMatch(uncorrected), "overreaching": Overreaching()}
    probes = [ProbeLine(question="Say euro", answers=("Euro",)), ProbeLine(question="Say what")]
    found = evaluate([FRANCE, SPAIN], systems, uncorrected, [2, 1], probes).systems
    assert values(found["uncorrected"]["1"]) == {
        "reliability": (0.0, 1), "generality": (0.0, 1), "locality": (1.0, 2), "retention": (1.0, 2),
        "probes_right": (1.0, 1),
    }  # fmt: skip
    assert values(found["exact_match"]["1"])["reliability"] == (1.0, 1)
    assert values(found["exact_match"]["1"])["generality"] == (0.0, 1)
    assert values(found["exact_match"]["2"])["locality"] == (1.0, 3)  # two of them scored against their correction
    assert values(found["overreaching"]["2"]) == {
        "reliability": (0.5, 2), "generality": (0.5, 2), "locality": (pytest.approx(1 / 3), 3), "retention": (0.0, 2),
        "probes_right": (0.0, 1),
    }  # fmt: skip


def test_a_corrected_neighbour_is_scored_against_its_correction() -> None:
    exam = Exam((FRANCE, SPAIN), ())
    before = dict.fromkeys(exam.questions, "as before")
    assert exam.score(before, before)["locality"].value == pytest.approx(1 / 3)  # only Italy was to stay
    right = before | {"What is the capital of Spain?": "seville", "What is the capital of France?": "Lyon."}
    assert exam.score(right, before)["locality"].value == 1.0
    assert Exam((FRANCE,), ()).score(before, before)["locality"].value == 1.0  # Spain was not corrected yet


def test_the_later_of_two_answers_counts() -> None:
    assert Exam((FRANCE, AGAIN), ()).corrections() == {
        "what is the capital of france": "Nice",
        "france is governed from which city": "Nice",
    }


def test_uncorrected_answers_are_generated_once() -> None:
    answerer = Parrot()
    shared = bench(answerer)
    evaluate([FRANCE, SPAIN], build_systems(["uncorrected", "exact_match"], shared), shared.uncorrected, [1, 2])
    assert answerer.decoded == len(Exam((FRANCE, SPAIN), ()).questions)


def test_the_memory_system_reads_lessons_through_the_lesson_memory() -> None:
    memory = build_systems(["memory"], bench(Parrot()))["memory"]
    assert said(memory, [FRANCE.question]) == ["France?"]
    memory.teach([FRANCE])
    memory.teach([SPAIN])
    reworded = "Of France what is the capital?"
    assert said(memory, [FRANCE.question, reworded, *FRANCE.neighbours]) == ["Lyon", "Lyon", "Seville", "Italy?"]
    memory.teach([AGAIN])
    assert said(memory, [FRANCE.question]) == ["Nice"]


def test_a_context_strategy_decodes_with_the_lesson_in_the_prompt() -> None:
    answerer = Parrot()
    memory = build_systems(["context"], bench(answerer))["context"]
    memory.teach([FRANCE])
    before = answerer.decoded
    memory.ask([FRANCE.question, "Say what"])
    assert answerer.decoded == before + 2
    memory.ask([FRANCE.question, "Say what"])
    assert answerer.decoded == before + 2  # greedy answers never change


def test_the_noise_floor_compares_batch_sizes() -> None:
    questions = [f"Say word{number}" for number in range(40)]
    assert noise_floor(Parrot(), questions).value == 1.0
    assert (noise_floor(Parrot(noisy=True), questions).value, noise_floor(Parrot(), questions).n) == (0.0, 32)


def test_files_in_one_result_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "lessons.jsonl", [FRANCE, SPAIN])
    write_lines(tmp_path / "probes.jsonl", [ProbeLine(question="Say euro")])
    seen: list[tuple[int, int]] = []
    found = evaluate_files(
        tmp_path / "lessons.jsonl", tmp_path / "probes.jsonl", ["uncorrected", "memory", "exact_match"], [1, 2],
        bench(Parrot()), progress=lambda total, done: seen.append((total, done)),
    )  # fmt: skip
    assert list(found.systems) == ["uncorrected", "memory", "exact_match"]
    assert found.systems["uncorrected"]["2"]["noise_floor"].value == 1.0
    assert "noise_floor" not in found.systems["memory"]["2"]
    assert found.systems["memory"]["2"]["reliability"].value == 1.0
    assert found.measures == {
        "lessons": 2,
        "probes": 1,
        "noise_floor": {"value": 1.0, "low": pytest.approx(0.342, abs=1e-3), "high": 1.0, "n": 2},
    }
    assert seen[-1][0] == seen[-1][1]
    assert len({total for total, _ in seen}) == 1


def test_mistakes_are_answered_in_words(tmp_path: Path) -> None:
    write_lines(tmp_path / "lessons.jsonl", [FRANCE])
    with pytest.raises(ValueError, match="known systems are uncorrected, memory, adaptive"):
        evaluate_files(tmp_path / "lessons.jsonl", None, ["oracle"], [1], bench(Parrot()))
    with pytest.raises(ValueError, match="lengths = 1, 10: give lengths from 1 to 1"):
        evaluate_files(tmp_path / "lessons.jsonl", None, ["memory"], [1, 10], bench(Parrot()))
