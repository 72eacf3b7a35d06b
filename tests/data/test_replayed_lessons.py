"""Lessons of earlier cycles that a cycle trains again: chosen from what the cycles' folders hold, and kept there."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline.config import ConfigError, Recipe
from pipeline.data.lines import LessonLine
from pipeline.evaluate.compare import Examination, Outcome
from pipeline.feedback.copies import erase
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_lesson, retract_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.manifest import Manifest, manifests
from pipeline.home import Home
from pipeline.model.bundle import Bundle
from pipeline.train.cycle import open_cycle, read_cycle
from pipeline.train.history import forgetting_events, record_answers
from pipeline.train.replayed import balanced, forgetting, replayed_lessons, uniform
from pipeline.train.sampling import inclusion

TEACHER = Key("tim", "teach")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def teach(log: EventLog, question: str, answer: str = "so") -> str:
    receipt = record_lesson(log, LessonLine(question=question, answer=answer), key=TEACHER)
    assert receipt.lesson_id
    return receipt.lesson_id


def settings(choice: str, count: int = 2) -> Recipe:
    return Recipe().with_changes({"train.replay_lessons": count, "train.replay_choice": choice})


def run(home: Home, log: EventLog, recipe: Recipe, from_seq: int, answered: dict[str, bool]) -> Manifest:
    """A cycle whose model, of what it was asked, knew ``answered``."""
    folder, manifest = open_cycle(home, log, from_seq, recipe)
    earlier = tuple(lesson for lesson in answered if lesson not in manifest.lessons)
    exam = Examination((), (), earlier_lessons=earlier)
    new = tuple(answered[lesson] for lesson in manifest.lessons)
    outcome = Outcome((), (), new, (), tuple(answered[lesson] for lesson in earlier))
    record_answers(folder, manifest.lessons, exam, outcome)
    (folder / "verdict.json").write_text("null\n")
    return manifest


def three_cycles(home: Home, log: EventLog, recipe: Recipe) -> tuple[list[str], Manifest]:
    """Six lessons in three cycles: the second one forgets lesson 0, the third one is about to begin."""
    lessons = [teach(log, f"q{n}") for n in range(4)]
    first = run(home, log, recipe, 0, dict.fromkeys(lessons, True))
    lessons.append(teach(log, "q4"))
    second = run(home, log, recipe, first.to_seq, {lessons[0]: False, lessons[1]: True, lessons[4]: True})
    lessons.append(teach(log, "q5"))
    return lessons, second


def test_a_cycle_names_what_it_replays_and_goes_on_with_it(log: EventLog, home: Home) -> None:
    recipe = settings("forgetting")
    lessons, second = three_cycles(home, log, recipe)
    assert manifests(home.cycles)[0].replayed == ()  # nothing was there before
    assert set(second.replayed) <= {*lessons[:4]}
    assert len(second.replayed) == 2
    folder, third = open_cycle(home, log, second.to_seq, recipe)
    assert set(third.replayed) <= {*lessons[:5]}
    assert third.trained == (lessons[5], *third.replayed)
    retract_lesson(log, third.replayed[0], key=TEACHER)
    assert open_cycle(home, log, second.to_seq, Recipe()) == (
        folder,
        third,
    )  # interrupted: the same range, the same set


def test_what_is_replayed_is_trained_in_its_trained_phrasings(log: EventLog, home: Home) -> None:
    recipe = settings("uniform", 9).with_changes({"train.templates": 2})
    lessons, second = three_cycles(home, log, recipe)
    _, third = open_cycle(home, log, second.to_seq, recipe)
    assert third.replayed == tuple(sorted(lessons[:5]))
    data, exam = read_cycle(home, log, recipe, third, Bundle.initial(recipe))
    wordings = Counter(item.lesson_id for item in data.items)
    assert wordings == dict.fromkeys(lessons, 2)
    assert {item.question for item in data.items} >= {"q0", "Question: q0", "q5"}
    assert exam.new_lessons == (("q5", "so"),)
    assert (set(exam.earlier_lessons), set(exam.earlier_cycles)) == ({*lessons[:5]}, {1, 2})


def test_only_what_stood_before_and_stands_still_is_replayed(log: EventLog, home: Home) -> None:
    recipe = settings("uniform", 9)
    lessons, second = three_cycles(home, log, recipe)
    teach(log, "q1", "otherwise")
    retract_lesson(log, lessons[2], key=TEACHER)
    _, third = open_cycle(home, log, second.to_seq, recipe)
    assert set(third.lessons) == {lessons[1], lessons[5]}
    assert set(third.replayed) == {lessons[0], lessons[3], lessons[4]}


def test_the_choices_weigh_lessons_as_they_say(log: EventLog, home: Home) -> None:
    lessons, _ = three_cycles(home, log, Recipe())
    earlier = lessons[:5]
    by = [[choose(earlier, home.cycles)[i] for i in earlier] for choose in (uniform, balanced, forgetting)]
    assert inclusion(by[0], 2) == pytest.approx([2 / 5] * 5)
    assert inclusion(by[1], 2) == pytest.approx([1 / 4] * 4 + [1.0])  # two cycles of four lessons and of one
    assert inclusion(by[2], 2) == pytest.approx([2 / 3] + [1 / 3] * 4)


def test_the_forgotten_is_replayed_as_often_as_stated_also_from_a_copy_of_the_folder(log: EventLog, home: Home) -> None:
    """A copy is what a new process sees: no state of the draw lies anywhere else."""
    lessons, _ = three_cycles(home, log, Recipe())
    copy = home.root / "copy"
    shutil.copytree(home.cycles, copy)
    train = settings("forgetting").train
    samples = [replayed_lessons(lessons[:5], home.cycles, train, cycle) for cycle in range(600)]
    assert samples == [replayed_lessons(lessons[:5], copy, train, cycle) for cycle in range(600)]
    counts = Counter(lesson for sample in samples for lesson in sample)
    for lesson, expected in zip(lessons[:5], [400, 200, 200, 200, 200], strict=True):
        assert abs(counts[lesson] - expected) < 52  # four and a half standard deviations of a binomial count


def test_forgetting_is_right_and_later_wrong(log: EventLog, home: Home) -> None:
    a, b, c = (teach(log, question) for question in ("a", "b", "c"))
    seen = [{a: True, b: False, c: True}, {a: False, b: False}, {a: True}, {a: False, c: False}, {c: False}]
    to_seq = 0
    for number, answered in enumerate(seen):
        if number:
            answered[teach(log, f"new {number}")] = True
        to_seq = run(home, log, Recipe(), to_seq, answered).to_seq
    assert forgetting_events(home.cycles) == {a: 2, c: 1}
    teach(log, "a", "otherwise")  # another answer begins again
    run(home, log, Recipe(), to_seq, {a: False})
    assert forgetting_events(home.cycles) == {c: 1}


def test_an_erased_lesson_is_traced_to_the_cycles_that_replayed_it(log: EventLog, home: Home, own_cache: Path) -> None:
    recipe = settings("uniform", 9)
    lessons, second = three_cycles(home, log, recipe)
    run(home, log, recipe, second.to_seq, {lessons[5]: True})
    assert [m.cycle for m in manifests(home.cycles) if lessons[0] in m.trained] == [1, 2, 3]
    assert erase(home, log, Target(lessons=(lessons[0],))).cycles == [1, 2, 3]
    assert json.loads((home.cycles / "000003" / "manifest.json").read_text())["replayed"]


def test_a_choice_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no effect while train.replay_lessons is 0"):
        settings("forgetting", 0)
