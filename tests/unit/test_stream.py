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
from pipeline.evaluate import study
from pipeline.evaluate.answers import CachedGenerator
from pipeline.evaluate.exam import Asked, Exam, first_word, judge
from pipeline.evaluate.harder import Workshop
from pipeline.evaluate.protocol import Message
from pipeline.evaluate.result import Result
from pipeline.evaluate.seam import Reply, System, filled
from pipeline.evaluate.stream import Course, Played, Timing, noise_floor, order, play
from pipeline.evaluate.summary import pooled, risk_coverage
from pipeline.evaluate.systems import SYSTEMS, Bench, Uncorrected
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
        return [Reply(self.answer, True, self.answer, 0.9)] * len(questions)

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


def bench(answerer: Parrot) -> Bench:
    settings, generator = MemorySettings(), CachedGenerator(answerer)
    empty_memory = partial(LessonMemory, Words(), CosineRouter(), settings)
    return Bench(generator, Uncorrected(generator), settings, empty_memory, Words)


def course(lines: Sequence[LessonLine], *lengths: int, probes: Sequence[ProbeLine] = ()) -> Course:
    return Course(tuple(lines), tuple(range(len(lines))), lengths, tuple(probes))


def played(system: System, wanted: Course) -> dict[int, dict[str, tuple[float, int]]]:
    """{length: {metric: (share, n)}}."""
    found = play(wanted, system, Uncorrected(Parrot()))
    return {
        length: {metric: (sum(right for _, right in rows) / len(rows), len(rows)) for metric, rows in cell.items()}
        for length, cell in found.outcomes.items()
    }


def said(system: System, questions: Sequence[str]) -> list[str | None]:
    uncorrected = Uncorrected(Parrot()).ask(questions)
    before = {question: reply.text or "" for question, reply in zip(questions, uncorrected, strict=True)}
    replies = filled(dict(zip(questions, system.ask(questions), strict=True)), before)
    return [reply.text for reply in replies.values()]


def test_each_length_asks_the_lessons_taught_so_far() -> None:
    probes = [ProbeLine(question="Say euro", answers=("Euro",)), ProbeLine(question="Say what")]
    wanted = course([FRANCE, SPAIN], 1, 2, probes=probes)
    shared = bench(Parrot())
    before = played(shared.uncorrected, wanted)
    assert before[1] == {
        "reliability": (0.0, 1), "retention_first": (0.0, 1), "generality": (0.0, 1), "locality": (1.0, 2),
        "locality_as_written": (1.0, 2), "locality_first_token": (1.0, 2), "abstention": (1.0, 2),
        "retention": (1.0, 2), "probes_right": (1.0, 1),
    }  # fmt: skip
    exact = played(SYSTEMS["exact_match"](shared), wanted)
    assert (exact[1]["reliability"], exact[1]["generality"]) == ((1.0, 1), (0.0, 1))
    assert exact[2]["locality"] == (1.0, 3)  # two of them judged by their correction
    assert exact[2]["abstention"] == (1.0, 1)  # Italy alone was not corrected
    assert played(Overreaching(), wanted)[2] == {
        "reliability": (0.5, 2), "retention_first": (0.5, 2), "generality": (0.5, 2),
        "locality": (pytest.approx(1 / 3), 3), "locality_as_written": (pytest.approx(1 / 3), 3),
        "locality_first_token": (0.0, 1), "abstention": (0.0, 1), "retention": (0.0, 2), "probes_right": (0.0, 1),
    }  # fmt: skip


def test_a_corrected_neighbour_is_scored_against_its_correction() -> None:
    exam = Exam((FRANCE, SPAIN))
    before = dict.fromkeys(exam.questions, "as before")
    assert exam.score(before, before)["locality"].value == pytest.approx(1 / 3)  # only Italy was to stay
    right = before | {"What is the capital of Spain?": "seville", "What is the capital of France?": "Lyon."}
    assert exam.score(right, before)["locality"].value == 1.0
    assert Exam((FRANCE,)).score(before, before)["locality"].value == 1.0  # Spain was not corrected yet


def test_a_neighbour_that_is_corrected_in_other_words_is_scored_against_its_correction() -> None:
    spain = SPAIN.model_copy(update={"previous": "Madrid", "subject": "Spain", "neighbours": ()})
    reworded = {"neighbours": ("Which city is Spain governed from?",), "neighbour_answers": ("Madrid",)}
    exam = Exam((FRANCE.model_copy(update=reworded), spain))
    before = dict.fromkeys(exam.questions, "as before")
    assert [exam.score(before, before)[name].value for name in ("locality", "locality_as_written")] == [0.0, 1.0]
    right = before | {"Which city is Spain governed from?": "Seville"}
    assert [exam.score(right, before)[name].value for name in ("locality", "locality_as_written")] == [1.0, 0.0]
    assert not any(each.metric == "abstention" for each in exam.asked())


def test_the_later_of_two_answers_counts() -> None:
    assert Exam((FRANCE, AGAIN)).corrections() == {
        "what is the capital of france": "Nice",
        "france is governed from which city": "Nice",
    }


def test_locality_is_the_whole_string_and_the_first_token_an_extra() -> None:
    asked = [each for each in Exam((FRANCE,)).asked() if each.metric.startswith("locality")]
    replies = {each.question: Reply("Madrid, of course") for each in asked}
    found = judge(asked, replies, dict.fromkeys(replies, "Madrid, I think"))
    assert [right for _, right in found["locality"]] == [False, False]
    assert [right for _, right in found["locality_first_token"]] == [True, True]
    assert first_word("") == ""


def test_a_system_that_cannot_tell_has_no_abstention() -> None:
    asked = [Asked("abstention", "0", "q", "silent")]
    assert judge(asked, {"q": Reply("x", from_memory=None)}, {}) == {}
    assert judge(asked, {"q": Reply("x", from_memory=True)}, {}) == {"abstention": [("0", False)]}


def test_retention_follows_the_first_hundred_lessons() -> None:
    lines = [LessonLine(question=f"Number {n}?", answer=str(n)) for n in range(150)]
    asked = [each for each in course(lines, 150).exam(150).asked() if each.metric == "retention_first"]
    assert [each.item for each in asked] == [str(n) for n in range(100)]


def test_the_product_reads_lessons_through_the_lesson_memory() -> None:
    memory = SYSTEMS["memory"](bench(Parrot()))
    assert said(memory, [FRANCE.question]) == ["France?"]
    memory.teach([FRANCE, SPAIN])
    reworded = "Of France what is the capital?"
    assert said(memory, [FRANCE.question, reworded, *FRANCE.neighbours]) == ["Lyon", "Lyon", "Seville", "Italy?"]
    replies = memory.ask([FRANCE.question, "Say what"])
    assert [reply.from_memory for reply in replies] == [True, False]
    assert replies[0].proposal == "Lyon"
    assert replies[0].confidence > 0.99 > 0.5 > replies[1].confidence
    memory.teach([AGAIN])
    assert said(memory, [FRANCE.question]) == ["Nice"]
    assert memory.size_bytes() > 500


def test_each_strategy_is_a_system() -> None:
    answerer = Parrot()
    shared = bench(answerer)
    said_by = {}
    for name in ("weights", "copy", "adaptive", "context"):
        system = SYSTEMS[name](shared)
        system.teach([FRANCE])
        said_by[name] = system.ask([FRANCE.question])[0]
    assert {name: reply.text for name, reply in said_by.items()} == {
        "weights": None, "copy": "Lyon", "adaptive": "Lyon", "context": "France?",
    }  # fmt: skip
    assert [said_by[name].from_memory for name in ("weights", "context")] == [False, True]
    assert answerer.decoded == 1  # the prompt with the lesson; the plain one is left to the uncorrected system


def test_a_neighbour_that_is_left_alone_is_not_decoded() -> None:
    wanted = course([FRANCE], 1)
    for name, decoded in (("exact_match", 1), ("uncorrected", 2)):
        answerer = Parrot()
        shared = bench(answerer)
        system = SYSTEMS[name](shared)
        outcomes = play(wanted, system, shared.uncorrected).outcomes[1]
        assert answerer.decoded == decoded  # the paraphrase, and the lesson's question where it is not recalled
        exam, model = wanted.exam(1), Uncorrected(Parrot())
        before = {q: text or "" for q, text in zip(exam.questions, said(model, exam.questions), strict=True)}
        whole = filled(dict(zip(exam.questions, system.ask(exam.questions), strict=True)), before)
        assert outcomes == judge(exam.asked(), whole, before)  # as if everything had been decoded


def test_lessons_are_taught_without_what_is_known_from_others() -> None:
    shared = bench(Parrot())
    seen: list[bool] = []

    class Watching(Overreaching):
        def teach(self, lines: Sequence[LessonLine]) -> None:
            super().teach(lines)
            seen.append(shared.answerer.kept.on)  # type: ignore[attr-defined]

    play(course([FRANCE], 1), Watching(), shared.uncorrected, bypassed=shared.answerer.bypassed)  # type: ignore[attr-defined]
    assert seen == [False]
    assert shared.answerer.kept.on  # type: ignore[attr-defined]


def test_the_noise_floor_compares_batch_sizes() -> None:
    questions = [f"Say word{number}" for number in range(40)]
    assert noise_floor(Parrot(), questions).value == 1.0
    assert (noise_floor(Parrot(noisy=True), questions).value, noise_floor(Parrot(), questions).n) == (0.0, 32)


def test_time_is_taken_without_the_cache() -> None:
    answerer = Parrot()
    shared = bench(answerer)
    shared.uncorrected.ask([FRANCE.question])
    wanted = course([FRANCE], 1)
    timing = Timing(shared.answerer.bypassed)  # type: ignore[attr-defined]
    found = play(wanted, shared.uncorrected, shared.uncorrected, timing=timing)
    assert len(found.milliseconds[1]) == 1  # of two questions the first warms up
    assert answerer.decoded == 4 + 2  # each question once, and two again to be timed
    assert found.others_cores[1] >= 0


def test_an_order_is_a_function_of_its_seed() -> None:
    assert order(5, None) == (0, 1, 2, 3, 4)
    assert order(100, 1) == order(100, 1) != order(100, 2)
    assert sorted(order(100, 1)) == list(range(100))


def test_items_that_are_asked_in_three_orders_count_once() -> None:
    found = pooled([[("a", True), ("b", False)], [("a", True), ("b", True)], [("a", True)]])
    assert (found.value, found.n) == (0.75, 2)


def test_risk_against_coverage_on_hand_worked_numbers() -> None:
    """Thresholds .9, .8 (two at once), .1; three of the questions have a lesson, one is never answered."""
    decisions = [(0.9, True, True), (0.8, False, True), (0.8, False, False), (0.1, False, False), (0.0, False, True)]
    assert risk_coverage(decisions) == [[1 / 3, 0.0], [2 / 3, 2 / 3], [2 / 3, 3 / 4]]


@pytest.fixture
def lines(tmp_path: Path) -> study.Lines:
    write_lines(tmp_path / "lessons.jsonl", [FRANCE, SPAIN])
    write_lines(tmp_path / "probes.jsonl", [ProbeLine(question="Say euro")])
    return study.Lines.read([tmp_path / "lessons.jsonl"], tmp_path / "probes.jsonl")


def test_files_in_one_result_out(lines: study.Lines) -> None:
    seen: list[tuple[str, int, int]] = []
    names = ("uncorrected", "memory", "exact_match", "tfidf", "subject_index", "rag")
    wanted = study.Study(lines, names, (1, 2), shuffles=2)
    found = study.run(wanted, bench(Parrot()), progress=lambda *step: seen.append(step))
    assert tuple(found.systems) == names
    assert found.systems["uncorrected"]["2"]["noise_floor"].value == 1.0
    assert "noise_floor" not in found.systems["memory"]["2"]
    assert found.systems["memory"]["2"]["reliability"].value == 1.0
    assert found.systems["memory"]["2"]["reliability"].n == 2  # two lessons, asked in two orders
    assert found.systems["memory"]["2"]["latency_p50_ms"].n == 3
    assert found.systems["memory"]["2"]["overwritten"].value == 0.5  # the question; its paraphrase is not found here
    assert found.systems["memory"]["2"]["stale"].value == 0.0
    assert found.spread("memory", "2", "reliability") == 0.0
    tested = found.measures["mcnemar"]["2"]["memory"]["uncorrected"]["reliability"]
    assert tested == {"p": 0.5, "lost": 0, "gained": 2, "n": 2}
    assert set(found.measures["files"]) == {"lessons.jsonl", "probes.jsonl"}
    assert found.measures["machine"]["cores"] >= 1
    assert found.measures["time_measured"]["label"].split()[0] in ("alone", "under")
    assert seen[-1] == ("noise floor", seen[-1][1], seen[-1][1])
    assert len({total for _, total, _ in seen}) == 1
    assert Result.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_what_is_finished_is_not_measured_again(lines: study.Lines, tmp_path: Path) -> None:
    wanted = study.Study(lines, ("uncorrected", "memory"), (1, 2), shuffles=2)
    first = study.run(wanted, bench(Parrot()), kept=tmp_path / "kept")
    files = sorted((tmp_path / "kept").rglob("*-*.json"))
    assert [file.name for file in files] == [
        "memory-0.json",
        "memory-1.json",
        "uncorrected-0.json",
        "uncorrected-1.json",
    ]
    assert Played.model_validate_json(files[0].read_text()).outcomes.keys() == {1, 2}
    answerer = Parrot()
    again = study.run(wanted, bench(answerer), kept=tmp_path / "kept")
    assert answerer.decoded == 0
    assert again.systems == first.systems
    other = study.Study(lines, ("uncorrected",), (1, 2), shuffles=2, seed=1)
    study.run(other, bench(answerer), kept=tmp_path / "kept")
    assert answerer.decoded > 0
    study.forget(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_files_own_order_is_one_order(lines: study.Lines) -> None:
    wanted = study.Study(lines, ("uncorrected",), (1,), shuffles=0)
    assert [each.order for each in wanted.courses()] == [(0, 1)]


def test_parts_and_slices(tmp_path: Path) -> None:
    many = [LessonLine.model_validate({"question": f"{n}?", "answer": "x", "part": "fit" if n % 2 else "report"})
            for n in range(10)]  # fmt: skip
    write_lines(tmp_path / "a.jsonl", many[:4])
    write_lines(tmp_path / "b.jsonl", many[4:])
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    fit = study.Lines.read(files, part="fit", cut="1:3")
    assert [line.question for line in fit.lessons] == ["3?", "5?"]
    assert (fit.part, fit.cut, [name for name, _ in fit.sources]) == ("fit", [1, 3], ["a.jsonl", "b.jsonl"])
    with pytest.raises(study.StudyError, match="the files' parts are fit, report"):
        study.Lines.read(files, part="test")
    with pytest.raises(study.StudyError, match="write START:STOP"):
        study.Lines.read(files, cut="5")
    with pytest.raises(study.StudyError, match="it is empty, there are 10 lessons"):
        study.Lines.read(files, cut="10:")


def test_mistakes_are_answered_in_words(lines: study.Lines) -> None:
    with pytest.raises(study.StudyError, match="known systems are uncorrected, memory, adaptive"):
        study.Study(lines, ("oracle",), (1,))
    with pytest.raises(study.StudyError, match="lengths = 1, 10: give numbers from 1 to 2"):
        study.Study(lines, ("memory",), (1, 10))


def test_systems_that_train_stop_early() -> None:
    many = tuple(LessonLine(question=f"{n}?", answer="x") for n in range(300))
    wanted = Course(many, order(300, 0), (10, 100, 300), (), Workshop(many))
    assert wanted.until(100).lengths == (10, 100)  # type: ignore[union-attr]
    assert wanted.until(5) is None
    with pytest.raises(study.StudyError, match="fine_tuning is measured up to length 100"):
        study.Study(study.Lines(many), ("fine_tuning",), (300,))
