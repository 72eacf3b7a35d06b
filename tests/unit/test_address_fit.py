"""The address head learns which tokens tell facts apart, and says which weights it belongs to."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jobs import pretrain
from pipeline.data.lines import LessonLine, write_lines
from pipeline.model.address import AddressHead, load_head, save_head
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.train.address_fit import AddressMaterial, Group, train_head
from pipeline.train.addressing import padded, place, question_tokens, read_of
from tests.tiny import REPLAY, tiny_recipe

WIDTH, FILLERS = 24, 12
FACTS = [(subject, relation) for subject in range(60) for relation in range(2)]


def words() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(n, WIDTH, generator=generator) for n in (60, 2, FILLERS))  # type: ignore[return-value]


def text(fact: tuple[int, int], wording: int) -> str:
    return f"{fact[0]}/{fact[1]}/{wording}"


def states() -> dict[str, Tensor]:
    """A wording is its subject, its relation and four words that mean nothing."""
    subjects, relations, fillers = words()
    draw, found = random.Random(3), {}
    for fact in FACTS:
        for wording in range(3):
            noise = fillers[draw.sample(range(FILLERS), 4)]
            found[text(fact, wording)] = torch.cat([subjects[[fact[0]]], relations[[fact[1]]], noise])
    return found


def group(fact: tuple[int, int]) -> Group:
    subject, relation = fact
    start = 0 if subject < 40 else 40
    other = (start + (subject - start + 1) % (40 - start or 20), relation)
    near = (text(other, 0), text((subject, 1 - relation), 1))
    return Group(tuple(text(fact, wording) for wording in range(3)), near)


def separated(head: AddressHead, known: dict[str, Tensor]) -> float:
    """Share of unseen facts whose other wording comes closer than both near misses."""
    facts = [fact for fact in FACTS if fact[0] >= 40]

    def near(asked: str, lesson: str) -> float:
        queries, keys = (head.address(*padded([known[name]])) for name in (asked, lesson))
        return float(head.similarity(queries, keys))

    right = [
        near(text(fact, 1), text(fact, 0)) > max(near(miss, text(fact, 0)) for miss in group(fact).near)
        for fact in facts
    ]
    return sum(right) / len(right)


def test_training_tells_unseen_facts_from_their_near_misses() -> None:
    torch.set_num_threads(1)
    known = states()
    learned = [group(fact) for fact in FACTS if fact[0] < 40]
    material = AddressMaterial(learned[::2], learned[1::2], [])
    before, after = (train_head(known, material, steps=steps) for steps in (0, 150))
    assert separated(after, known) >= 0.95 > separated(before, known)
    again = train_head(known, material, steps=150)
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in after.tensors().items())


def test_material_takes_what_lines_say() -> None:
    line = LessonLine(question="a?", answer="1", paraphrases=("so a?", "a, then?"), neighbours=("b?", "c?"))
    bare = LessonLine(question="d?", answer="2")
    natural = LessonLine.model_validate(
        {"question": "n?", "answer": "3", "paraphrases": ["o?"], "neighbours": ["p?"], "others": ["q?"]}
    )
    material = AddressMaterial.of([line, bare], [natural], seed=0, generated=10)
    assert material.lines == [Group(("a?", "so a?"), ("b?",))]
    assert material.natural == [Group(("n?", "o?"), ("p?", "q?"))]
    assert len(material.pairs) == 10
    assert {"a?", "so a?", "b?", "n?", "o?", "p?", "q?"} <= set(material.texts())


def test_a_head_is_saved_with_the_weights_that_it_belongs_to(tmp_path: Path) -> None:
    head = AddressHead(torch.zeros(3), torch.eye(3), torch.zeros(3, 2), torch.zeros(2), torch.tensor(0.5))
    save_head(head, tmp_path / "head.safetensors", "abc", 6)
    found = load_head(tmp_path / "head.safetensors", "abc", 6)
    assert all(torch.equal(tensor, found.tensors()[name]) for name, tensor in head.tensors().items())
    for digest, layer in (("abd", 6), ("abc", 4)):
        with pytest.raises(ValueError, match=r"train\.memory\.head"):
            load_head(tmp_path / "head.safetensors", digest, layer)


def test_a_head_of_one_s_own_is_trained_and_addresses_the_slots(home_root: Path, tmp_path: Path) -> None:
    """``agm pretrain --address``, on the tiny model: what it writes is what ``train.memory.head`` takes."""
    torch.set_num_threads(1)
    assert not home_root.exists()
    recipe = tiny_recipe(tmp_path / "model")
    recipe.write(tmp_path / "tiny.yaml")
    lines = [
        LessonLine(question=f"Who owns shop {n}?", answer=str(n), paraphrases=(f"The owner of shop {n} is",))
        for n in range(20)
    ]
    write_lines(tmp_path / "lessons.jsonl", lines)
    out = tmp_path / "head.safetensors"
    pretrain.main([
        "--lessons", str(tmp_path / "lessons.jsonl"), "--address", "--pairs", "100", "--steps", "3",
        "--out", str(out), "--recipe", str(tmp_path / "tiny.yaml"),
    ])  # fmt: skip
    settings = recipe.with_changes({"train.memory.keys": "tokens", "train.memory.head": str(out)}).train.memory
    backbone = Answerer.load(Bundle.initial(recipe)).backbone
    questions = [line.question for line in lines[:4]]
    state = place(None, backbone, question_tokens(backbone, [*questions, *REPLAY], 0), list("abcd"), settings)
    assert state.head is not None
    assert torch.equal(state.head.project, load_head(out, backbone.digest, 0).project)
    weights = read_of(state, question_tokens(backbone, questions, 0))
    assert weights.argmax(-1).tolist() == [0, 1, 2, 3]
