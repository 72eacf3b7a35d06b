"""Generated questions: deterministic, of the kind that they say, and never a lesson in disguise."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.lines import LessonLine
from pipeline.evaluate.exam import Asked, Exam
from pipeline.evaluate.harder import PERTURBATIONS, Relations, Workshop, case, drawn, dropped_word, typo
from pipeline.memory.types import question_key

CITIES = ("Oz", "Narnia", "Gondor", "Rohan", "Mordor", "Avalon")
TOWNS = ("Utopia", "Lilliput", "Laputa")
COINS = ("euro", "dinar", "lira", "franc", "crown", "peso")


def lesson(relation: str, wording: str, asked_again: str, subject: str, answer: str, neighbour: str) -> LessonLine:
    return LessonLine.model_validate({
        "question": wording.format(subject), "answer": answer, "paraphrases": [asked_again.format(subject)],
        "neighbours": [neighbour], "subject": subject, "relation": relation,
    })  # fmt: skip


MONEY = ("Which currency does {} use?", "What do people in {} pay with?")
RIVER = ("Which river flows through the city of {}?", "The river of {} is called what?")
LINES = (
    *(lesson("money", *MONEY, city, coin, "What does Mars use?") for city, coin in zip(CITIES, COINS, strict=True)),
    *(lesson("river", *RIVER, city, f"R{city}", "Which river crosses Paris?") for city in TOWNS),
)


def made(workshop: Workshop, numbers: range | None = None) -> list[Asked]:
    chosen = tuple(numbers or range(len(workshop.lines)))
    corrections = Exam(tuple(workshop.lines[number] for number in chosen)).corrections()
    return list(workshop.asked(chosen, corrections))


@given(st.text(max_size=60), st.integers(0, 5), st.sampled_from(sorted(PERTURBATIONS)))
def test_a_perturbation_is_another_text_or_none(text: str, seed: int, kind: str) -> None:
    changed = PERTURBATIONS[kind](text, drawn(seed, kind, text))
    assert changed is None or changed != text
    assert changed == PERTURBATIONS[kind](text, drawn(seed, kind, text))


def test_perturbations_do_what_their_names_say() -> None:
    text = "Which currency does Oz use?"
    slips = {typo(text, drawn(seed)) for seed in range(200)}
    assert {len(slip) - len(text) for slip in slips if slip} == {-1, 0, 1}
    assert all(slip and slip.startswith("W") and slip.endswith(" use?") for slip in slips)
    assert {case(text, drawn(seed)) for seed in range(20)} == {text.lower(), text.upper()}
    assert {dropped_word(text, drawn(seed)) for seed in range(20)} == {
        "currency does Oz use?",
        "Which currency Oz use?",
    }
    assert typo("Oz is old", drawn(0)) is None
    assert dropped_word("Oz rules", drawn(0)) is None


def test_the_same_questions_whatever_the_order() -> None:
    corrections = Exam(LINES).corrections()
    forwards = list(Workshop(LINES, seed=1).asked(range(9), corrections))
    backwards = list(Workshop(LINES, seed=1).asked(range(8, -1, -1), corrections))
    assert set(forwards) == set(backwards)
    assert set(forwards) != set(Workshop(LINES, seed=2).asked(range(9), corrections))


def test_near_misses_ask_what_no_lesson_answers() -> None:
    asked = made(Workshop(LINES))
    misses = [each for each in asked if each.metric in ("other_relation", "other_subject")]
    assert len(misses) == 2 * len(LINES)
    assert {each.rule for each in misses} == {"unchanged"}
    lessons = {question_key(text) for line in LINES for text in (line.question, *line.paraphrases)}
    assert not lessons & {question_key(each.question) for each in misses}
    silent = {each.question for each in asked if each.metric == "abstention"}
    assert {each.question for each in misses} == silent
    wordings = {wording.format(name) for wording in (MONEY[0], RIVER[0]) for name in (*CITIES, *TOWNS)}
    assert {each.question for each in misses} <= wordings


def test_without_a_relation_field_answers_that_replace_each_other_are_of_one_kind() -> None:
    def pair(answer: str, previous: str) -> list[LessonLine]:
        return [LessonLine(question=f"{n} {answer}", answer=answer, previous=previous) for n in range(2)]

    chain = ("a", "b", "c", "d", "e")
    lines = [line for left, right in pairwise(chain) for line in pair(left, right)]
    relations = Relations((*lines, *pair("x", "y")))
    assert relations.of(lines[0]) == relations.of(lines[-1]) is not None
    assert relations.of(LessonLine(question="?", answer="x")) is None  # a kind of two answers is not known well enough


def test_a_file_without_subjects_has_no_near_misses() -> None:
    lines = tuple(LessonLine(question=f"What is {n}?", answer=str(n)) for n in range(20))
    metrics = {each.metric for each in made(Workshop(lines))}
    assert not metrics & {"other_relation", "other_subject", "abstention", "perturbed_generality"}
    assert "case" in metrics


def test_perturbed_neighbours_are_to_stay_and_perturbed_paraphrases_to_be_answered() -> None:
    asked = made(Workshop(LINES))
    assert {each.rule for each in asked if each.metric == "perturbed_locality"} == {"unchanged"}
    generality = [each for each in asked if each.metric == "perturbed_generality"]
    assert {each.answers for each in generality} == {(line.answer,) for line in LINES}
    paraphrases = {question_key(line.paraphrases[0]) for line in LINES}
    assert all(question_key(each.question) in paraphrases for each in generality if ".case." in each.item)


def test_copy_wrong_probes_wait_for_all_their_lessons() -> None:
    some, everything = made(Workshop(LINES), range(2)), made(Workshop(LINES))
    assert {each.item for each in some if each.metric == "copy_wrong"} < {
        each.item for each in everything if each.metric == "copy_wrong"
    }
    mixed = [each for each in everything if each.metric == "mixed"]
    assert len(mixed) == len(LINES) + sum(each.metric == "copy_wrong" for each in everything)


def test_second_corrections_have_another_answer_of_the_same_kind() -> None:
    many = tuple(line.model_copy(update={"question": f"{n}: {line.question}"}) for n in range(5) for line in LINES)
    second, asked = Workshop(many, seed=3).overwrites(range(45))
    assert len(second) == 4
    originals = {text: line for line in many for text in (line.question, *line.paraphrases)}
    for line in second:
        original = originals[line.question]
        alike = {other.answer for other in many if other.model_extra == original.model_extra}
        assert line.answer in alike - {original.answer}
    assert {each.metric for each in asked} == {"stale", "overwritten", "stale_reworded", "overwritten_reworded"}
    assert Workshop(many, seed=3).overwrites(range(44, -1, -1)) == (second, asked)


@pytest.mark.parametrize("count", [0, 3])
def test_sub_tests_are_made_of_so_many_lessons(count: int) -> None:
    items = {each.item.split(".")[0] for each in made(Workshop(LINES, count=count)) if each.metric == "case"}
    assert len(items) == count
