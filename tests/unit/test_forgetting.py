"""The canary in the weights: a version without a lesson's slots answers as if it had never learned it."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Recipe
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.train.loop import Loop
from pipeline.train.methods import build_method
from tests.tiny import LESSONS, UNRELATED, tiny_training_set


def texts(answerer: Answerer, questions: list[str]) -> list[str]:
    return [answer.text for answer in answerer.generate([prompt_messages(question) for question in questions])]


def learned(recipe: Recipe, base: Answerer) -> Bundle:
    method = build_method(base, tiny_training_set(), recipe.train, lambda function, items: list(function(items)))
    settings = recipe.with_changes({"train.epochs": 40, "train.target_loss": 0}).train
    for _ in Loop(method, settings).run():
        pass
    return method.result()


def test_an_erased_lesson_is_not_answered_from_weights_and_the_others_are(
    recipe: Recipe, base: Answerer, tmp_path: Path
) -> None:
    questions, answers = map(list, zip(*LESSONS, strict=True))
    taught = learned(recipe, base)
    assert texts(Answerer.load(taught, share=base), questions) == answers
    taught.without_lessons({"les_1"}).save(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    after = Answerer.load(bundle, share=base)
    assert texts(after, questions)[1] == texts(base, questions)[1] != answers[1]
    assert [text for i, text in enumerate(texts(after, questions)) if i != 1] == [
        a for i, a in enumerate(answers) if i != 1
    ]
    assert texts(after, list(UNRELATED)) == texts(base, list(UNRELATED))
    assert bundle.memory is not None
    assert bundle.memory.slots == ("les_0", "les_2", "les_3")


def test_the_last_lesson_takes_the_layer_with_it(recipe: Recipe, base: Answerer) -> None:
    taught = learned(recipe, base)
    assert taught.without_lessons({f"les_{n}" for n in range(4)}).memory is None
    assert Bundle.initial(recipe).without_lessons({"les_0"}).memory is None
