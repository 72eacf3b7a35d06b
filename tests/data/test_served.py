"""Questions that people asked with ``store`` are replayed; nothing else is, and none that is meant to change."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.config import Recipe
from pipeline.data.lines import LessonLine
from pipeline.feedback.copies import erase
from pipeline.feedback.erasure import Target
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import record_answer, record_feedback, record_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.manifest import Manifest, build_manifest, cycle_history, cycle_lessons
from pipeline.feedback.records import Event
from pipeline.feedback.sealer import Sealer
from pipeline.feedback.served import served
from pipeline.home import Home
from pipeline.model.bundle import Bundle
from pipeline.train.cycle import training_set
from pipeline.train.dataset import TrainingSet
from pipeline.train.replayed import served_prompts, shipped_prompts

ASKER, TEACHER = Key("ann", "ask"), Key("tim", "teach")


def ask(log: EventLog, question: str, *, store: bool = True, turns: int = 1, **more: object) -> Event:
    messages = [{"role": "user", "content": question}] * turns
    given = {"key": ASKER, **more}
    return record_answer(log, question=question, answer="so", messages=messages, store=store, **given)


def manifest(log: EventLog, table: Path, count: int = 100, seed: int = 5) -> Manifest:
    Sealer(log, table).drain()
    return build_manifest(table, log, cycle=1, from_seq=0, to_seq=log.head(), seed=seed, served=count)


def test_only_what_was_asked_with_store_and_should_stay_is_replayed(log: EventLog, tmp_path: Path) -> None:
    kept = ask(log, "Who wrote Hamlet?")
    ask(log, "Who wrote hamlet")  # the same question
    ask(log, "Who wrote Faust?", store=False)
    ask(log, "And who wrote that?", turns=3)
    ask(log, "Who wrote Emma?", lessons={"les_1": 0.9})
    corrected = ask(log, "Who wrote Ulysses?")
    record_feedback(log, response_id=str(corrected.response_id), kind="correction", value="Joyce", key=ASKER)
    ask(log, "Capital of Kazakhstan?")
    record_lesson(log, LessonLine(question="capital of kazakhstan", answer="Astana"), key=TEACHER)
    made = manifest(log, tmp_path / "feedback")
    assert made.served == (kept.seq,)
    assert manifest(log, tmp_path / "feedback", count=0).served == ()
    made.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == made


def test_each_question_is_drawn_with_the_same_probability_and_a_longer_log_keeps_the_draw() -> None:
    def answer(seq: int) -> Event:
        messages = [{"role": "user", "content": f"q{seq}"}]
        body = {"question": f"q{seq}", "messages": messages, "lessons": [], "store": True}
        return Event(kind="answer", body=body, source="ann", response_id=f"resp_{seq}", seq=seq)

    events = [answer(seq) for seq in range(1, 41)]
    drawn = Counter(seq for seed in range(2000) for seq in served(events, [], count=10, seed=seed))
    assert sum(drawn.values()) == 2000 * 10
    # A binomial count of 2000 draws at 1/4: mean 500, standard deviation 19.4; five of them leave 1 in 40,000 runs.
    assert all(abs(drawn[event.seq] - 500) < 100 for event in events)
    first, longer = (set(served(events[:n], [], count=10, seed=1)) for n in (20, 40))
    assert {seq for seq in longer if seq <= 20} <= first
    assert served(events, [], count=10, seed=1) == served(reversed(events), [], count=10, seed=1)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def test_what_a_lesson_answers_in_other_words_is_not_replayed(log: EventLog, home: Home) -> None:
    recipe = Recipe()
    hamlet = ask(log, "Who wrote Hamlet?")
    ask(log, "Which city is the capital of Kazakhstan?")
    record_lesson(log, LessonLine(question="What is the capital of Kazakhstan?", answer="Astana"), key=TEACHER)
    made = manifest(log, Path(home.feedback_table))
    assert len(made.served) == 2
    history = cycle_history(home.feedback_table, log, made)
    asked = served_prompts(log, history, made, recipe, Bundle.initial(recipe))
    assert asked == {hamlet.seq: "Who wrote Hamlet?"}
    data = training_set(made, cycle_lessons(history, made), recipe, asked)
    assert data.replay == ("Who wrote Hamlet?", *shipped_prompts())
    assert data.rows == (hamlet.seq,)


def test_an_erased_question_leaves_training_sets_and_manifests(log: EventLog, home: Home, own_cache: Path) -> None:
    gone, kept = ask(log, "Does Jane Doe live in Oz?"), ask(log, "Who wrote Hamlet?", key=Key("bob", "ask"))
    made = manifest(log, Path(home.feedback_table))
    for cycle, rows in ((1, made.served), (2, (kept.seq,))):
        folder = home.cycles / f"{cycle:06d}"
        folder.mkdir(parents=True)
        made.model_copy(update={"cycle": cycle, "served": rows}).save(folder / "manifest.json")
        (folder / "verdict.json").write_text("null\n")
        TrainingSet((), ("words",), rows).save(home.train_storage / f"cycle-{cycle}" / "training_set.json")
    erase(home, log, Target(subjects=("Jane Doe",)))
    assert gone.seq != kept.seq
    assert Manifest.load(home.cycles / "000001" / "manifest.json").served == (kept.seq,)
    assert [path.name for path in home.train_storage.iterdir()] == ["cycle-2"]
