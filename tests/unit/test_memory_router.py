"""The router's parts: features, generated questions, the adapter, and a fit from end to end."""

from __future__ import annotations

import random
from importlib.resources import files

import numpy as np
import pytest
import torch

from pipeline.data.lines import LessonLine, ProbeLine
from pipeline.memory.features import FEATURES, Pair, WordTable, features
from pipeline.memory.pair_encoder import adapter_tensors, base_pair_encoder, load_pair_encoder, make_trainable, style
from pipeline.memory.router import CLOSELY, NO_RIVAL, SAME_WORDS, Head, close_rows, final_inputs, load_router
from pipeline.memory.router_check import figures, route
from pipeline.memory.router_data import Generator, common_subject, natural_lines, read_relations
from pipeline.memory.router_examples import COMMON, RelationSwap, SubjectSwap, nearest_lessons, question_examples
from pipeline.memory.router_fit import Material, by_field, fit_head, fit_router
from pipeline.memory.segments import segments
from pipeline.model.encoder import load_encoder

COVERED, WORST = FEATURES.index("lesson_covered"), FEATURES.index("lesson_worst")


@pytest.fixture(scope="module")
def table() -> WordTable:
    tokenizer = load_encoder(device="cpu").tokenizer
    return WordTable(lambda word: tokenizer.encode(word, add_special_tokens=False))


def row(question: str, phrasing: str, table: WordTable) -> np.ndarray:
    return features([Pair(question, phrasing, 0.9, 0.1)], table)[0]


def test_a_missing_subject_weighs_more_than_a_missing_common_word(table: WordTable) -> None:
    known = "What is the capital of Kazakhstan?"
    other_subject = row("What is the capital of Uzbekistan?", known, table)
    other_words = row("Tell me the capital of Kazakhstan", known, table)
    assert other_subject[WORST] > other_words[WORST]
    assert other_subject[COVERED] < other_words[COVERED]


def test_case_does_not_count_and_a_typo_counts_little(table: WordTable) -> None:
    known = "What is the capital of Kazakhstan?"
    np.testing.assert_array_equal(row(known.upper(), known, table), row(known, known, table))
    assert row("What is the capital of Kazahkstan?", known, table)[COVERED] > 0.8


def test_features_of_nothing_are_empty(table: WordTable) -> None:
    assert features([], table).shape == (0, len(FEATURES))
    assert np.isfinite(row("?!", "...", table)).all()


def test_a_question_in_the_lessons_own_words_needs_no_reading() -> None:
    router = load_router()
    pairs = [Pair("who wrote dune", "Who wrote Dune?", 1.0, 0.5), Pair("who wrote dune", "Who wrote Emma?", 0.5, -0.5)]
    assert router.score(pairs)[0] == SAME_WORDS
    assert router.score(pairs)[1] < 0


def test_only_the_best_few_candidates_are_read_closely() -> None:
    pairs = [Pair("q", f"p{n}", 0.5, 0.0, asking=n % 2) for n in range(20)]
    rows = close_rows(pairs, np.arange(20, dtype=np.float64), floor=3)
    assert len(rows) == 2 * CLOSELY
    assert min(rows) == 20 - 2 * CLOSELY
    assert close_rows(pairs, np.zeros(20), floor=1) == []


def test_an_adapter_starts_as_the_base_and_survives_saving() -> None:
    pairs = [("Who wrote Dune?", "The author of Dune is"), ("Who wrote Dune?", "Who wrote Emma?")]
    encoder = base_pair_encoder()
    before = encoder.score(pairs)
    trainable = make_trainable(encoder, rank=4)
    assert encoder.score(pairs) == pytest.approx(before, abs=1e-5)
    with torch.no_grad():
        for parameter in trainable:
            parameter += 0.01 * torch.randn_like(parameter)
    loaded = load_pair_encoder(adapter_tensors(encoder))
    assert loaded.score(pairs) == pytest.approx(encoder.score(pairs), abs=0.02)
    assert encoder.score(pairs) != pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("Who leads NATO?", True),
        ("who leads nato", True),
        ("In which city does Nestlé sit", True),
        ("Quelle est la capitale du Kazakhstan ?", True),
        ("Where is Canada Line? It is located in", False),
        ("Where Paul Biegel is from, people speak the language of", False),
        ("Will Smith works as", False),
        ("The mother tongue of Denis Diderot is", False),
    ],
)
def test_a_question_is_told_from_a_statement_to_complete(text: str, asks: bool) -> None:
    assert style(text, "The mother tongue of Voltaire is") == ("question" if asks else "statement")
    assert style("What is Voltaire's mother tongue?", text) == "question"


def test_training_one_style_leaves_the_other_bit_for_bit() -> None:
    lines = [
        LessonLine(
            question=f"What is the code of room {n}?", answer=str(n), paraphrases=(f"Which code opens room {n}?",),
            neighbours=(f"What is the code of hall {n}?",),
        )
        for n in range(15)
    ]  # fmt: skip
    encoder, before = load_encoder(device="cpu"), load_router().tensors
    after = fit_router(
        Material(lines, generated=40), encoder, seed=1, start_from=before, styles=("question",), head_lessons=12
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(after) == set(before)
    assert changed
    assert all(name.startswith("question.") for name in changed)
    with pytest.raises(ValueError, match="needs all of"):
        fit_router(Material(lines), encoder, styles=("question",))


def test_a_check_asks_everything_that_lines_name() -> None:
    lines = [
        LessonLine.model_validate({
            "question": "What is the capital of Kazakhstan?",
            "answer": "Astana",
            "paraphrases": ["Which city is Kazakhstan's capital?"],
            "neighbours": ["What is the capital of Peru?"],
            "others": ["What is the currency of Kazakhstan?"],
            "roundabout": ["Kazakhstan is governed from which city?"],
        }),
        LessonLine(question="Who wrote Dune?", answer="Frank Herbert"),
    ]  # fmt: skip
    found = figures(route(load_router(), lines, lines, load_encoder(device="cpu")), gate=0.65)
    assert {kind: (share.value, share.n) for kind, share in found.items()} == {
        "question": (1.0, 2), "paraphrase": (1.0, 1), "roundabout": (1.0, 1), "neighbour": (1.0, 1), "other": (1.0, 1),
    }  # fmt: skip


def test_held_out_natural_lines_are_those_that_say_so() -> None:
    lines = natural_lines()
    known, held_out = by_field(lines)
    assert len(known) + len(held_out) == len(lines)
    assert 0.15 < len(held_out) / len(lines) < 0.25
    assert len({line.id for line in lines}) == len(lines)


def test_the_shipped_router_is_small() -> None:
    assert len((files("pipeline.memory") / "router.safetensors").read_bytes()) < 12_000_000


def test_every_relation_has_wordings_that_name_the_subject() -> None:
    relations = read_relations()
    assert sum(map(len, relations.values())) > 150
    for wordings in (wordings for kind in relations.values() for wordings in kind):
        assert len(set(wordings)) == len(wordings) >= 3
        assert all("{s}" in wording for wording in wordings)


def test_generated_near_misses_differ_in_exactly_one_respect() -> None:
    generator = Generator([], seed=3)
    for fact in (generator.fact() for _ in range(50)):
        subject, relation = generator.other_subject(fact), generator.other_relation(fact)
        assert (subject.relation, subject.subject != fact.subject) == (fact.relation, True)
        assert (relation.subject, relation.relation != fact.relation) == (fact.subject, True)


def test_withheld_relations_are_not_generated_for_training() -> None:
    known = {(f.kind, f.relation) for f in (Generator([], 1, "known").fact() for _ in range(3))}
    withheld = {(f.kind, f.relation) for f in (Generator([], 1, "withheld").fact() for _ in range(3))}
    assert known.isdisjoint(withheld)


def test_the_subject_of_a_line_is_what_its_wordings_share() -> None:
    line = LessonLine(
        question="Michel Denisot spoke the language", answer="x", paraphrases=("Michel Denisot's tongue is",)
    )
    assert common_subject(line) in (None, "Michel")
    line = LessonLine(
        question="The profession of Henry Brassey is", answer="x", paraphrases=("What is Henry Brassey by trade?",)
    )
    assert common_subject(line) == "Henry Brassey"


def test_a_head_learns_what_a_line_cannot_separate() -> None:
    numbers = random.Random(0)
    inputs = np.array([[numbers.uniform(-1, 1), numbers.uniform(-1, 1)] for _ in range(400)], dtype=np.float32)
    labels = (inputs[:, 0] * inputs[:, 1] > 0).astype(np.float32)
    head = Head(fit_head("h", inputs, labels, seed=1), "h")
    assert ((head(inputs) > 0) == (labels > 0)).mean() > 0.95


def test_a_router_is_fitted_and_loads() -> None:
    """The whole stage on a handful of lessons: what comes out is what load_router takes."""
    lines = [
        LessonLine(
            question=f"The profession of Person Number{n} is",
            answer="x",
            paraphrases=(f"What does Person Number{n} do for a living?",),
            neighbours=(f"The profession of Somebody Else{n} is",),
        )
        for n in range(10)
    ]
    tensors = fit_router(Material(lines, generated=40), load_encoder(device="cpu"), seed=1, head_lessons=12)
    scores = load_router(tensors).score([Pair("who is it", "what is that", 0.2, 0.2)])
    assert scores.shape == (1,)
    assert np.isfinite(scores).all()


def test_each_sentence_of_a_question_is_read_and_an_initial_ends_none() -> None:
    text = "I was in Nebraska last week. Kip S. Thorne works in the field of"
    assert segments(text) == (text, "I was in Nebraska last week.", "Kip S. Thorne works in the field of")
    assert segments("Who wrote Dune?") == ("Who wrote Dune?",)
    assert segments("Hi! Who wrote Dune?")[1:] == ("Who wrote Dune?",)


def test_a_rival_is_another_lesson_of_the_same_question() -> None:
    pairs = [
        Pair("q", "a", 0.9, 0.1, asking=0, lesson=0),
        Pair("q", "a in other words", 0.8, 0.1, asking=0, lesson=0),
        Pair("q", "b", 0.7, 0.1, asking=0, lesson=1),
        Pair("r", "a", 0.7, 0.1, asking=1, lesson=0),
    ]
    inputs = final_inputs(np.zeros((4, 1), dtype=np.float32), pairs, [3.0, 2.0, 1.0, 5.0])
    assert inputs[:, 1].tolist() == [3.0, 2.0, 1.0, 5.0]
    assert inputs[:, 2].tolist() == [2.0, 1.0, -2.0, 5.0 - NO_RIVAL]


def test_a_swapped_subject_is_another_name_in_the_same_words() -> None:
    swap = SubjectSwap(["Paul McCartney", "Jesse McCartney", "Ken Loach", None], seed=0)
    texts = [text for _ in range(20) for text in swap("Paul McCartney works as", "Paul McCartney")]
    assert "Jesse McCartney works as" in texts
    assert all(text.endswith(" works as") and not text.startswith("Paul") for text in texts)
    assert list(swap("Somebody works as", "Paul McCartney")) == []


def test_another_relation_of_a_subject_is_asked_in_other_lessons_words() -> None:
    names = [f"{first} {last}" for first in ("Ann", "Bob", "Cleo") for last in ("Arno", "Berg", "Cole", "Dahl")]
    speaks = [("{} speaks", "The language of {} is", f"tongue {n % 6}") for n in range(COMMON)]
    plays = [("{} plays as", "The position of {} is", f"position {n % 6}") for n in range(COMMON)]
    plays += [("{} plays as", "On the field {} is a", "goalkeeper")]  # one relation by the wording that they share
    native = [("{} is a native speaker of", "{} grew up with", f"tongue {n % 6}") for n in range(COMMON)]
    lines = [
        LessonLine(question=asked.format(name), answer=answer, paraphrases=(other.format(name),), subject=name)
        for asked, other, answer in (*speaks, *plays, *native)
        for name in names
    ]
    swap = RelationSwap(lines, seed=0)
    speaker = lines[0]
    found = {text for _ in range(60) for text in swap(speaker, 2)}
    # Languages have answers in common, and may be one relation in words that no lesson links.
    assert found == {"Ann Arno plays as", "The position of Ann Arno is", "On the field Ann Arno is a"}
    rare = LessonLine(question="Ann Arno was born in", answer="Paris", paraphrases=("Ann Arno is from",))
    assert list(swap(rare, 2)) == []


def test_a_near_lesson_about_the_same_subject_is_no_near_miss() -> None:
    lines = [
        LessonLine(question="Rumi is affiliated with the religion", answer="x"),
        LessonLine(question="Ovid lived in", answer="x", neighbours=("Rumi follows the religion of",)),
        *(LessonLine(question=f"{name} follows the religion of", answer="x") for name in ("Dante", "Virgil", "Homer")),
    ]
    near = nearest_lessons(lines, ["Rumi", "Ovid", "Dante", "Virgil", "Homer"], load_encoder(device="cpu"))
    compared = {lines[other].question for text, other in near[1] if text.startswith("Rumi")}
    assert compared
    assert "Rumi is affiliated with the religion" not in compared


def test_questions_with_one_answer_are_one_question_and_others_are_near_misses() -> None:
    probes = [
        ProbeLine(question="what currency is used in peru", answers=("sol",)),
        ProbeLine(question="what is the currency used in peru", answers=("Sol",)),
        ProbeLine(question="what currency is used in chile", answers=("peso",)),
    ]
    labels = {frozenset(pair[:2]): pair[2] for pair in question_examples(probes, load_encoder(device="cpu"), seed=4)}
    assert set(labels.values()) == {0.0, 1.0}
