"""The baselines, each on what it is known for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.data.lines import LessonLine
from pipeline.evaluate.baselines.exact_match import ExactMatch
from pipeline.evaluate.baselines.fine_tuning import FineTuning, LoraReplay, ReplayFineTuning
from pipeline.evaluate.baselines.grace import Grace, LastStates
from pipeline.evaluate.baselines.subject_index import SubjectIndex
from pipeline.evaluate.baselines.tfidf import TfIdf
from pipeline.evaluate.protocol import prompt_messages
from pipeline.evaluate.seam import System, filled
from pipeline.model.answerer import Answerer
from tests.tiny import LESSONS, UNRELATED

OZ = LessonLine(question="What is the capital of Oz?", answer="Emerald City", subject="Oz")
NARNIA = LessonLine(question="Who rules Narnia?", answer="Aslan", paraphrases=("In whose hands is Narnia?",))


def texts(system: System, *questions: str) -> list[str | None]:
    """Where a question is left to the uncorrected model, that says "no idea"."""
    replies = filled(dict(zip(questions, system.ask(questions), strict=True)), dict.fromkeys(questions, "no idea"))
    return [reply.text for reply in replies.values()]


@pytest.mark.parametrize("kind", [ExactMatch, TfIdf, SubjectIndex])
def test_a_store_starts_empty_learns_and_overwrites(kind: type) -> None:
    store = kind()
    assert texts(store, OZ.question) == ["no idea"]
    empty = store.size_bytes()
    store.teach([OZ, NARNIA])
    assert texts(store, NARNIA.question, OZ.question, "Is water wet?") == ["Aslan", "Emerald City", "no idea"]
    assert [reply.from_memory for reply in store.ask([OZ.question, "Is water wet?"])] == [True, False]
    assert store.size_bytes() > empty
    store.teach([OZ.model_copy(update={"answer": "Ozma"})])
    assert texts(store, OZ.question) == ["Ozma"]


def test_exact_match_knows_no_other_words() -> None:
    store = ExactMatch()
    store.teach([OZ])
    assert texts(store, "what is the capital of oz", "What's the capital of Oz?") == ["Emerald City", "no idea"]


def test_tfidf_forgives_typos() -> None:
    store = TfIdf()
    store.teach([OZ, NARNIA])
    [reply] = store.ask(["Who ruls Narnia?"])
    assert (reply.text, reply.from_memory, reply.proposal) == ("Aslan", True, "Aslan")
    assert 0.5 < reply.confidence < 1


def test_the_subject_index_answers_whatever_is_asked_about_its_subject() -> None:
    store = SubjectIndex()
    store.teach([OZ, NARNIA])
    said = texts(store, "How old is OZ?", "Where is Narnia?", "Where is Ozark?")
    assert said == ["Emerald City", "Aslan", "no idea"]
    store.teach([LessonLine(question="How large is New Oz?", answer="Small", subject="New Oz")])
    assert texts(store, "Who lives in New Oz?") == ["Small"]  # the longest subject counts


class Circle:
    """A text is an angle, its state a point of the unit circle; small angles are distances."""

    def encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        angles = np.array([float(text) for text in inputs])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def codebook() -> Grace:
    return Grace(Circle(), radius=0.1)


def edit(question: str, answer: str) -> LessonLine:
    return LessonLine(question=question, answer=answer)


def test_grace_defers_outside_every_radius() -> None:
    book = codebook()
    book.teach([edit("0", "a")])
    assert texts(book, "0", "0.05", "0.2") == ["a", "a", "no idea"]


def test_grace_adds_expands_and_splits() -> None:
    book = codebook()
    book.teach([edit("0", "a"), edit("0.5", "b")])
    assert [slot.radius for slot in book.slots] == [0.1, 0.1]  # apart by more than both radii: no collision
    near = partial(pytest.approx, abs=1e-3)
    book.teach([edit("0.15", "A.")])  # the same answer: the radius grows
    assert [slot.radius for slot in book.slots] == [near(0.15), 0.1]
    book.teach([edit("0.16", "c")])
    assert [slot.radius for slot in book.slots] == [near(0.08), 0.1, near(0.08)]
    assert [slot.answer for slot in book.slots] == ["a", "b", "c"]
    assert texts(book, "0", "0.16", "0.5") == ["a", "c", "b"]
    book.teach([edit("0", "new")])
    assert texts(book, "0") == ["new"]


def test_states_are_those_of_the_last_prompt_token(base: Answerer) -> None:
    states = LastStates(base.backbone, layer=2)
    questions = ["Who rules Narnia?", "Hm?", "Which city is the capital of Oz, and why?"]
    together = states.encode(questions)
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    prompt = base.backbone.prompt(prompt_messages(questions[0]))
    with torch.inference_mode():
        output = base.backbone.model(torch.tensor([prompt.ids]), output_hidden_states=True)
    alone = torch.nn.functional.normalize(output.hidden_states[2][0, -1], dim=-1)
    assert np.allclose(together[0], alone.numpy(), atol=1e-4)
    assert np.array_equal(states.encode([questions[1], questions[0]]), together[[1, 0]])


@pytest.mark.parametrize("kind", [FineTuning, ReplayFineTuning, LoraReplay])
def test_training_writes_lessons_into_a_copy_of_the_weights(
    base: Answerer, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluate.baselines.fine_tuning.DENSE_RATE", 1e-2)  # a model of width 32 needs more
    monkeypatch.setattr(kind, "rate", 3e-2 if kind is LoraReplay else 1e-2, raising=False)
    before = {name: tensor.clone() for name, tensor in base.backbone.model.state_dict().items()}
    plain = [answer.text for answer in base.generate([prompt_messages(question) for question in UNRELATED])]
    system = kind(base)
    assert texts(system, *UNRELATED) == plain
    lines = [LessonLine(question=question, answer=answer) for question, answer in LESSONS[:2]]
    system.teach(lines)
    replies = system.ask([line.question for line in lines])
    assert replies[-1].text == lines[-1].answer
    assert kind is FineTuning or replies[0].text == lines[0].answer
    assert replies[0].from_memory is None
    assert system.size_bytes() > 0
    after = base.backbone.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in base.backbone.model.parameters())
