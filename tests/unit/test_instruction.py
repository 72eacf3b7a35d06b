"""The instruction phase's prompts, and that a model learns from them to use a lesson and to leave another alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.instruction_training import instruction_recipe
from pipeline.config import Recipe
from pipeline.data.lines import LessonLine
from pipeline.evaluate.protocol import normalise, prompt_messages
from pipeline.memory.context import with_lessons
from pipeline.model.answerer import Answerer
from pipeline.train.dataset import Fact, TrainingSet
from pipeline.train.distributed import Sharing
from pipeline.train.instruction import UNKNOWN, Prompts, prompts_of, trained_wordings, withheld_wordings
from pipeline.train.loop import Loop
from pipeline.train.methods import build_method

LINES = [
    LessonLine(question="Who rules Narnia?", answer="x", paraphrases=("Narnia's ruler?", "Whose is Narnia?")),
    LessonLine(question="Who reigns in Narnia?", answer="y"),  # the same fact as the first
    LessonLine(question="How tall is Mount Doom?", answer="z"),
    LessonLine(question="When did Rome fall?", answer="x"),
]
CLUSTERS = [0, 0, 1, 2]


def prompts(said: dict[str, str], seed: int = 0) -> Prompts:
    return prompts_of(LINES, CLUSTERS, trained_wordings, said, seed)


def everything(answer: str) -> dict[str, str]:
    return {text: answer for line in LINES for text in trained_wordings(line)}


def test_each_trained_wording_is_asked_under_its_lesson_and_under_another_facts() -> None:
    found = prompts(everything(UNKNOWN))
    assert [(item.question, item.answer, *item.shown) for item in found.applies[:2]] == [
        ("Who rules Narnia?", "x", Fact("Who rules Narnia?", "x")),
        ("Narnia's ruler?", "x", Fact("Who rules Narnia?", "x")),
    ]
    assert len(found.applies) == 5
    assert {item.answer for item in found.otherwise} == {UNKNOWN}
    assert [item.question for item in found.otherwise] == [item.question for item in found.applies]
    assert found.otherwise[0].shown == (Fact("How tall is Mount Doom?", "z"),)  # the only other fact and answer
    shown = {prompts(everything(UNKNOWN), seed).otherwise[-2].shown[0].answer for seed in range(20)}
    assert shown == {"x", "y"}  # of Mount Doom's question: drawn, and never its own
    assert prompts(everything(UNKNOWN), 3) == prompts(everything(UNKNOWN), 3)


def test_what_the_model_does_not_end_is_not_taught() -> None:
    found = prompts({"When did Rome fall?": "476"})
    assert [(item.question, item.answer) for item in found.otherwise] == [("When did Rome fall?", "476")]
    assert len(found.applies) == 5


def test_no_withheld_wording_is_trained() -> None:
    withheld = {normalise(text) for line in LINES for text in withheld_wordings(line)}
    assert normalise("Whose is Narnia?") in withheld
    assert withheld.isdisjoint(normalise(item.question) for item in prompts(everything(UNKNOWN)).items)


def test_lessons_in_prompts_travel_to_the_workers(tmp_path: Path) -> None:
    data = TrainingSet(prompts(everything(UNKNOWN)).items, ("What is granite?",))
    data.save(tmp_path / "set.json")
    assert TrainingSet.load(tmp_path / "set.json") == data


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_learns_to_use_a_lesson_and_to_leave_another_alone(recipe: Recipe, base: Answerer, method: str) -> None:
    """Of one question, what stands in the prompt alone decides what is said."""
    line, other = LINES[0], LINES[2]
    changes = {"train.method": method, "train.optimizer": "adam", "train.learning_rate": 0.01, "train.epochs": 120}
    settings = recipe.with_changes({**changes, "train.target_loss": 0.05, "train.lora.rank": 16}).train
    found = prompts_of([line, other], [0, 1], trained_wordings, dict.fromkeys(everything("?"), "?"), 0)
    trained = build_method(base, TrainingSet(found.items), settings, Sharing())
    for _ in Loop(trained, settings).run():
        pass
    taught = Answerer.load(trained.result())
    asked = [with_lessons(prompt_messages(line.question), [told]) for told in (line, other)]
    answers = taught.generate(asked)
    assert [answer.text for answer in answers] == ["x", "?"]
    assert all(answer.finished for answer in answers)


def test_the_phase_trains_ordinary_weights() -> None:
    assert instruction_recipe(Recipe(), 5, 3).train.model_dump(include={"method", "epochs", "seed", "optimizer"}) == {
        "method": "lora", "epochs": 5, "seed": 3, "optimizer": "adam",
    }  # fmt: skip
    upper = Recipe().with_changes({"train.method": "upper:2", "train.learning_rate": 1e-5})
    assert instruction_recipe(upper, None, None) == upper
