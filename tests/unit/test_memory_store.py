"""The lesson memory with the real encoder and the shipped router."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.config import MemorySettings
from pipeline.feedback.records import Event, Role
from pipeline.memory.approximate import ApproximatePartition
from pipeline.memory.belief import fold, slot_id
from pipeline.memory.features import Pair
from pipeline.memory.router import TrainedRouter, load_router, weights_with_null
from pipeline.memory.snapshot import SnapshotError
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Viewer
from pipeline.model.encoder import TextEncoder, load_encoder

KAZAKHSTAN = "What is the capital of Kazakhstan?"
LESSONS = {
    KAZAKHSTAN: "Astana",
    "Who is the chief executive of Nestlé?": "Philipp Navratil",
    "What is the latest edition of ISO 14001?": "ISO 14001:2015",
    "What currency is used in Croatia?": "euro",
}


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_encoder(device="cpu")


@pytest.fixture(scope="module")
def router() -> TrainedRouter:
    return load_router()


@pytest.fixture
def memory(encoder: TextEncoder, router: TrainedRouter) -> LessonMemory:
    return LessonMemory(encoder, router)


def taught(seq: int, question: str, answer: str, *, tenant: str = "default", **body: Any) -> Event:
    return _event(seq, question, answer, "ada", "teach", tenant, "global", "", body)


def asked(seq: int, question: str, answer: str, *, user: str) -> Event:
    return _event(seq, question, answer, user, "ask", "default", "user", user, {})


def _event(
    seq: int,
    question: str,
    answer: str,
    source: str,
    role: Role,
    tenant: str,
    scope: Any,
    owner: str,
    extra: dict[str, Any],
) -> Event:
    lesson_id = slot_id(tenant, scope, owner, question)
    body = {"op": "correct", "lesson_id": lesson_id, "question": question, "answer": answer, **extra}
    return Event("lesson", body, source, role, tenant, scope, owner, seq=seq)


def stream(start: int = 1) -> list[Event]:
    return [taught(seq, question, answer) for seq, (question, answer) in enumerate(LESSONS.items(), start)]


def ask(memory: LessonMemory, question: str, viewer: Viewer = Viewer()) -> str | None:  # noqa: B008 - frozen
    """The answer of the heaviest lesson where lessons outweigh the null slot."""
    (reading,) = memory.read([question], [viewer])
    return reading.slots[0].answer if reading.gate > 0.5 else None


def test_a_correction_changes_the_very_next_reading(memory: LessonMemory) -> None:
    memory.apply(stream())
    assert [ask(memory, question) for question in LESSONS] == list(LESSONS.values())
    memory.apply([taught(10, KAZAKHSTAN, "Nur-Sultan")])
    assert ask(memory, KAZAKHSTAN) == "Nur-Sultan"


@pytest.mark.parametrize("question", ["what is the capital of kazakhstan", "From which city is Kazakhstan governed?"])
def test_a_paraphrase_reads_the_lesson(memory: LessonMemory, question: str) -> None:
    memory.apply(stream())
    assert ask(memory, question) == "Astana"


@pytest.mark.parametrize(
    "question",
    [
        "What is the capital of Uzbekistan?",
        "Who is the chief executive of Unilever?",
        "what currency is used in kazakhstan",
        "What is the latest edition of ISO 9001?",
        "Hello, how are you?",
    ],
)
def test_a_neighbour_reads_the_null_slot(memory: LessonMemory, question: str) -> None:
    memory.apply(stream())
    assert ask(memory, question) is None


def test_a_posted_paraphrase_is_a_key_too(memory: LessonMemory) -> None:
    memory.apply([taught(1, KAZAKHSTAN, "Astana", paraphrases=["Qazaqstannyñ astanasy qai qala?"])])
    assert ask(memory, "Qazaqstannyñ astanasy qai qala?") == "Astana"


def test_a_reading_sums_to_one_and_lists_the_heaviest_first(memory: LessonMemory) -> None:
    memory.apply(stream())
    for reading in memory.read([KAZAKHSTAN, "Who wrote Dune?"], [Viewer(), Viewer()]):
        weights = [slot.weight for slot in reading.slots]
        assert sum(weights) + reading.null_weight == pytest.approx(1.0)
        assert weights == sorted(weights, reverse=True)
        assert reading.gate == 1 - reading.null_weight


def test_an_empty_memory_reads_null(memory: LessonMemory) -> None:
    (reading,) = memory.read([KAZAKHSTAN], [Viewer()])
    assert (reading.null_weight, reading.slots) == (1.0, ())
    assert memory.read([], []) == []


def test_one_viewer_per_question(memory: LessonMemory) -> None:
    with pytest.raises(ValueError, match="one viewer per question"):
        memory.read([KAZAKHSTAN], [])


def test_tenants_are_isolated(memory: LessonMemory) -> None:
    memory.apply([taught(1, KAZAKHSTAN, "Astana", tenant="red"), taught(2, KAZAKHSTAN, "Almaty", tenant="blue")])
    assert ask(memory, KAZAKHSTAN, Viewer(tenant="red")) == "Astana"
    assert ask(memory, KAZAKHSTAN, Viewer(tenant="blue")) == "Almaty"
    assert ask(memory, KAZAKHSTAN) is None
    assert [lesson.answer for lesson in memory.lessons(Viewer(tenant="red"))] == ["Astana"]


def test_a_users_lesson_beats_everybodys_for_that_user_alone(memory: LessonMemory) -> None:
    memory.apply([*stream(), asked(20, KAZAKHSTAN, "Almaty", user="ben")])
    assert ask(memory, KAZAKHSTAN, Viewer(user="ben")) == "Almaty"
    assert ask(memory, "From which city is Kazakhstan governed?", Viewer(user="ben")) == "Almaty"
    assert ask(memory, KAZAKHSTAN, Viewer(user="cy")) == "Astana"
    assert ask(memory, KAZAKHSTAN) == "Astana"


def test_viewers_in_one_batch_do_not_mix(memory: LessonMemory) -> None:
    memory.apply([asked(1, KAZAKHSTAN, "Almaty", user="ben"), *stream(2)[1:]])
    ben, cy = memory.read([KAZAKHSTAN, KAZAKHSTAN], [Viewer(user="ben"), Viewer(user="cy")])
    assert ben.slots[0].answer == "Almaty"
    assert cy.gate < 0.5


def test_a_retracted_lesson_is_gone(memory: LessonMemory) -> None:
    memory.apply(stream())
    lesson_id = slot_id("default", "global", "", KAZAKHSTAN)
    body = {"op": "retract", "lesson_id": lesson_id}
    memory.apply([Event("lesson", body, "ada", "teach", seq=9)])
    assert memory.get(lesson_id) is None
    assert ask(memory, KAZAKHSTAN) is None
    memory.apply([taught(10, KAZAKHSTAN, "Astana")])
    assert ask(memory, KAZAKHSTAN) == "Astana"


def test_applying_again_changes_nothing(memory: LessonMemory) -> None:
    events = stream()
    assert memory.apply(events) == 4
    before = memory.lessons(Viewer())
    assert memory.apply(events) == 4
    assert memory.lessons(Viewer()) == before
    assert {lesson.lesson_id: lesson for lesson in before} == fold(events)


def test_lessons_are_searched_and_paged(memory: LessonMemory) -> None:
    memory.apply(stream())
    assert [lesson.answer for lesson in memory.lessons(Viewer(), search="EURO")] == ["euro"]
    pages = [memory.lessons(Viewer(), offset=offset, limit=3) for offset in (0, 3)]
    assert [len(page) for page in pages] == [3, 1]
    assert pages[0][0].last_seq == 4


def test_a_snapshot_continues_bit_equal(
    memory: LessonMemory, encoder: TextEncoder, router: TrainedRouter, tmp_path: Path
) -> None:
    memory.apply([*stream(), asked(5, KAZAKHSTAN, "Almaty", user="ben"), asked(6, KAZAKHSTAN, "Almaty", user="cy")])
    memory.save(tmp_path)
    loaded = LessonMemory.load(tmp_path, encoder, router)
    later = [
        asked(7, KAZAKHSTAN, "Almaty", user="di"),
        taught(8, "Who is the chief executive of Nestlé?", "Someone Else"),
    ]
    questions = [*LESSONS, "From which city is Kazakhstan governed?", "Who wrote Dune?"]
    for events in ([], later):
        memory.apply(events)
        loaded.apply(events)
        viewers = [Viewer(user="ben")] * len(questions)
        assert loaded.applied_seq == memory.applied_seq
        assert loaded.lessons(Viewer(user="ben")) == memory.lessons(Viewer(user="ben"))
        assert loaded.read(questions, viewers) == memory.read(questions, viewers)


def test_a_snapshot_of_another_encoder_is_refused(
    memory: LessonMemory, encoder: TextEncoder, router: TrainedRouter, tmp_path: Path
) -> None:
    memory.save(tmp_path)
    renamed = TextEncoder("hf:other", encoder.model, encoder.tokenizer)
    with pytest.raises(SnapshotError, match="replay the event log"):
        LessonMemory.load(tmp_path, renamed, router)


def test_readers_beside_the_writer_see_whole_lessons(memory: LessonMemory) -> None:
    memory.apply(stream())
    seen: list[str | None] = []
    reader = threading.Thread(target=lambda: seen.extend(ask(memory, KAZAKHSTAN) for _ in range(10)))
    reader.start()
    for seq in range(10, 20):
        memory.apply([taught(seq, KAZAKHSTAN, f"city {seq}")])
    reader.join()
    assert None not in seen
    assert ask(memory, KAZAKHSTAN) == "city 19"


def test_the_encoder_gives_unit_vectors_that_do_not_depend_on_the_batch(encoder: TextEncoder) -> None:
    texts = [KAZAKHSTAN, "Who wrote Dune?", "a", "word " * 300]
    vectors = encoder.encode(texts)
    assert vectors.shape == (4, encoder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[:2], np.vstack([encoder.encode([text]) for text in texts[:2]]), atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_softmax_with_null_is_a_distribution_at_any_scale() -> None:
    for log_odds in ([], [0.0], [-800.0, 3.0], [900.0, 900.0]):
        weights, null = weights_with_null(np.array(log_odds, dtype=np.float64))
        assert weights.sum() + null == pytest.approx(1.0)
    assert weights_with_null(np.array([0.0]))[1] == 0.5


def test_a_session_lesson_is_read_in_its_session_alone_and_beats_the_users(memory: LessonMemory) -> None:
    in_session = _event(21, KAZAKHSTAN, "Nur-Sultan", "ben", "ask", "default", "session", "s1", {})
    memory.apply([*stream(), asked(20, KAZAKHSTAN, "Almaty", user="ben"), in_session])
    assert ask(memory, KAZAKHSTAN, Viewer(user="ben", session="s1")) == "Nur-Sultan"
    assert ask(memory, KAZAKHSTAN, Viewer(session="s1")) == "Nur-Sultan"
    assert ask(memory, KAZAKHSTAN, Viewer(user="ben", session="s2")) == "Almaty"
    assert ask(memory, KAZAKHSTAN, Viewer(tenant="other", session="s1")) is None
    assert "Nur-Sultan" not in [lesson.answer for lesson in memory.lessons(Viewer(user="ben"))]


def test_an_expired_lesson_is_not_read_and_one_that_ends_later_still_is(memory: LessonMemory) -> None:
    memory.apply([taught(1, KAZAKHSTAN, "Astana", expires="2030-01-01")])
    before, after = datetime(2029, 12, 31, 23, 59, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)
    for now, gate in ((before, 0.5), (after, 0.0)):
        (reading,) = memory.read([KAZAKHSTAN], [Viewer()], now)
        assert (reading.gate > 0.5) == (gate > 0)
    assert ask(memory, KAZAKHSTAN) == "Astana"
    ended = {"op": "expire", "lesson_id": slot_id("default", "global", "", KAZAKHSTAN), "expires": "2026-01-01"}
    memory.apply([Event("lesson", ended, "ada", "teach", seq=2)])
    assert ask(memory, KAZAKHSTAN) is None
    memory.apply([Event("lesson", {**ended, "expires": None}, "ada", "teach", seq=3)])
    assert ask(memory, KAZAKHSTAN) == "Astana"


def test_lessons_that_may_not_be_read_do_not_crowd_out_those_that_may() -> None:
    memory = LessonMemory(Words(), AllAlike(), MemorySettings(candidates=4))
    expired = [taught(seq, f"Same words number {seq}", "old", expires="2020-01-01") for seq in range(1, 60)]
    memory.apply([*expired, taught(60, "Same words again", "new")])
    (reading,) = memory.read(["Same words number 3"], [Viewer()])
    assert [slot.answer for slot in reading.slots] == ["new"]


def test_get_and_explain_by_id(memory: LessonMemory) -> None:
    memory.apply([*stream(), asked(20, KAZAKHSTAN, "Almaty", user="ben")])
    lesson_id = slot_id("default", "global", "", KAZAKHSTAN)
    explained = memory.explain(lesson_id)
    assert explained is not None
    assert explained.lesson == memory.get(lesson_id)
    assert [(step.seq, step.source, step.answer) for step in explained.evidence] == [
        (1, "ada", "Astana"), (20, "ben", "Almaty"),
    ]  # fmt: skip
    assert explained.evidence[-1].beliefs == explained.lesson.beliefs
    assert memory.explain("les_unknown") is memory.get("les_unknown") is None


class Words:
    """A bag of words: each counts in one of 64 places. It gives the same bits in any batch."""

    name, dimension = "words", 64

    def encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(inputs), self.dimension), dtype=np.float32)
        for row, text in zip(rows, inputs, strict=True):
            for word in text.lower().split():
                row[sum(word.encode()) % self.dimension] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class AllAlike:
    """Log-odds that grow with the cosine."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        return np.array([10 * pair.cosine - 5 for pair in pairs], dtype=np.float64)


_steps = st.lists(
    st.tuples(
        st.sampled_from(["correct", "correct", "correct", "rate", "retract", "expire"]),
        st.sampled_from(["ada", "ben", "cy", "di"]),
        st.sampled_from(["ask", "ask", "teach"]),
        st.sampled_from(["global", "tenant", "user", "session"]),
        st.integers(0, 4),  # question
        st.sampled_from(["red", "Red.", "blue", "green"]),
        st.sampled_from([-1, 1]),
    ),
    max_size=30,
)


def _made(steps: list[tuple[Any, ...]]) -> list[Event]:
    events = []
    for seq, (op, source, role, scope, number, answer, value) in enumerate(steps, 1):
        where = ("user" if scope in ("global", "tenant") else scope) if role == "ask" else scope
        owner = {"user": source, "session": "s1"}.get(where, "")
        question = f"What colour has thing {number} of the {number * 7} things"
        named = slot_id("default", "global" if value > 0 and role == "ask" else where, owner * (value < 0), question)
        extra: dict[str, Any] = {"value": value, "expires": "2020-01-01" if op == "expire" and value > 0 else None}
        event = _event(seq, question, answer, source, role, "default", where, owner, {"op": op, **extra})
        event.body["lesson_id"] = named if op != "correct" or value > 0 else event.body["lesson_id"]
        events.append(event)
    return events


@given(_steps, st.integers(0, 30), st.integers(0, 30))
@settings(deadline=None, max_examples=40)
def test_save_load_and_the_rest_is_bit_for_bit_the_whole_log(
    steps: list[tuple[Any, ...]], first: int, second: int
) -> None:
    """Wherever the log is cut: by batches, and by a snapshot from which the rest goes on."""
    events = _made(steps)
    whole = LessonMemory(Words(), AllAlike())
    whole.apply(events)
    cut = LessonMemory(Words(), AllAlike())
    cut.apply(events[:first])
    with tempfile.TemporaryDirectory() as folder:
        cut.save(Path(folder) / "snapshot")
        cut = LessonMemory.load(Path(folder) / "snapshot", Words(), AllAlike())
    cut.apply(events[first : first + second])
    cut.apply(events[first + second :])
    assert cut.applied_seq == whole.applied_seq
    assert cut._fold.sources.records == whole._fold.sources.records
    assert cut._fold.aliases == whole._fold.aliases
    questions = [f"what colour has thing {number} of these {number * 7} things" for number in range(5)]
    for viewer in (Viewer(), Viewer(user="ben"), Viewer(user="cy", session="s1")):
        lessons = whole.lessons(viewer)
        assert cut.lessons(viewer) == lessons
        assert [cut.explain(x.lesson_id) for x in lessons] == [whole.explain(x.lesson_id) for x in lessons]
        assert cut.read(questions, [viewer] * 5) == whole.read(questions, [viewer] * 5)
    assert fold(events) == {key: slot.lesson for key, slot in cut._fold.slots.items()}


def test_an_interrupted_save_leaves_the_snapshot_before_it(tmp_path: Path) -> None:
    memory = LessonMemory(Words(), AllAlike())
    memory.apply(stream())
    memory.save(tmp_path / "snapshot")
    memory.apply([taught(10, KAZAKHSTAN, "Almaty")])
    memory._index.save = None  # type: ignore[assignment,method-assign]  # the disk is full, say
    with pytest.raises(TypeError):
        memory.save(tmp_path / "snapshot")
    assert LessonMemory.load(tmp_path / "snapshot", Words(), AllAlike()).applied_seq == 4
    with pytest.raises(SnapshotError, match="no snapshot here"):
        LessonMemory.load(tmp_path / "elsewhere", Words(), AllAlike())


def test_a_large_tenant_is_read_approximately_and_overwrites_and_retractions_hold(tmp_path: Path) -> None:
    memory = LessonMemory(Words(), AllAlike(), MemorySettings(candidates=4))
    memory._index.exact_below = 300
    names = [f"{chr(97 + n % 26)}{chr(97 + n // 26)}{'x' * (n % 7)} zone" for n in range(600)]
    memory.apply([taught(seq, name, f"answer {seq}") for seq, name in enumerate(names, 1)])
    memory._index.wait()
    (partition,) = memory._index.partitions.values()
    assert isinstance(partition, ApproximatePartition)
    gone = {"op": "retract", "lesson_id": slot_id("default", "global", "", names[50])}
    memory.apply([taught(700, names[40], "rewritten"), Event("lesson", gone, "ada", "teach", seq=701)])
    memory.save(tmp_path / "snapshot")
    for each in (memory, LessonMemory.load(tmp_path / "snapshot", Words(), AllAlike(), memory.settings)):
        rewritten, retracted = each.read([names[40], names[50]], [Viewer()] * 2)
        assert "rewritten" in [slot.answer for slot in rewritten.slots]
        assert "answer 51" not in [slot.answer for slot in retracted.slots]


def test_the_candidates_setting_bounds_what_the_router_scores(encoder: TextEncoder) -> None:
    class Counting:
        def score(self, pairs: Any) -> Any:
            self.seen = len(pairs)
            return np.zeros(len(pairs))

    router = Counting()
    memory = LessonMemory(encoder, router, MemorySettings(candidates=2))
    memory.apply(stream())
    memory.read([KAZAKHSTAN], [Viewer()])
    assert router.seen == 2
