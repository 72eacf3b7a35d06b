"""The lesson memory with the real encoder and the shipped router."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import MemorySettings
from pipeline.feedback.records import Event, Role
from pipeline.memory.belief import fold, slot_id
from pipeline.memory.index import ExactIndex
from pipeline.memory.router import TrainedRouter, load_router, weights_with_null
from pipeline.memory.store import LessonMemory, SnapshotError
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
    assert memory.apply(stream()) == 4
    before = memory.lessons(Viewer())
    assert memory.apply(stream()) == 4
    assert memory.lessons(Viewer()) == before
    assert {lesson.lesson_id: lesson for lesson in before} == fold(stream())


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


def test_the_index_grows_reuses_rows_and_hides_other_owners() -> None:
    index = ExactIndex(8)
    vectors = np.eye(8, dtype=np.float32)[np.arange(200) % 8]
    labels = np.stack([np.ones(200), np.arange(200) % 2], axis=1).astype(np.int64)
    rows = index.add(vectors, labels)
    found, cosines = index.search(vectors[3], 1, (0,), 5)
    assert all(row % 2 == 0 for row in found.tolist())
    assert sorted(cosines.tolist(), reverse=True) == cosines.tolist()
    index.remove(rows[:100])
    assert set(index.add(vectors[:100], labels[:100]).tolist()) == set(rows[:100].tolist())
    assert index.used == 200
    assert len(index.search(vectors[0], 2, (0, 1), 5)[0]) == 0


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
