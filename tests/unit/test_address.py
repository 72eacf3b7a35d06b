"""The address of memory slots, token by token: hand-worked similarities, near misses, saving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.model.address import MOST_TOKENS, AddressHead, last_tokens
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.train.addressing import distinct, place, question_tokens
from tests.tiny import LESSONS, REPLAY, tiny_recipe

AXES = torch.eye(3)


def plain_head(mix: float = 0.25) -> AddressHead:
    """Tokens as they are, all equally important."""
    return AddressHead(torch.zeros(3), AXES, torch.zeros(3, 2), torch.zeros(2), torch.tensor(mix))


def addressed(head: AddressHead, *questions: list[int]) -> torch.Tensor:
    """Questions of one-hot tokens."""
    width = max(map(len, questions))
    hidden = torch.stack([torch.cat([AXES[question], torch.zeros(width - len(question), 3)]) for question in questions])
    span = torch.tensor([[True] * len(question) + [False] * (width - len(question)) for question in questions])
    return head.address(hidden, span)


def test_similarity_by_hand() -> None:
    """Key {0, 1}, query {0, 2, 2}: half of the key is asked about, a third of the query is known."""
    head = plain_head(mix=0.25)
    key, query = addressed(head, [0, 1]), addressed(head, [0, 2, 2])
    assert float(head.similarity(query, key)) == pytest.approx(0.75 / 2 + 0.25 / 3)
    both = addressed(head, [0, 1], [0, 2, 2])
    torch.testing.assert_close(head.similarity(both, both).diagonal(), torch.ones(2))


def test_padding_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    head = plain_head()
    together = addressed(head, [0, 1], [0, 2, 2, 1], [2])
    whole = head.similarity(together, together)
    alone = [addressed(head, question) for question in ([0, 1], [0, 2, 2, 1], [2])]
    by_pairs = torch.tensor([[float(head.similarity(q, k)) for k in alone] for q in alone])
    torch.testing.assert_close(whole, by_pairs)
    monkeypatch.setattr("pipeline.model.address.CHUNK", 1)
    torch.testing.assert_close(head.similarity(together, together), whole)


def test_the_last_tokens_of_a_long_question_count() -> None:
    span = torch.zeros(2, 40, dtype=torch.bool)
    span[0, 3:38] = True
    span[1, 10:12] = True
    hidden = torch.arange(40.0).expand(2, 40)[..., None]
    found, there = last_tokens(hidden, span)
    assert found[0, :, 0].tolist() == list(range(38 - MOST_TOKENS, 38))
    assert found[1, there[1], 0].tolist() == [10, 11]


def test_a_phrasing_that_a_key_answers_to_gets_none() -> None:
    head = plain_head()
    addresses = addressed(head, [0, 1], [1, 0], [2, 2], [0, 1])
    assert distinct(head, addresses, ["a", "a", "a", "b"]) == [0, 2, 3]


def test_a_bundle_keeps_its_head_bit_by_bit(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    answerer = Answerer.load(Bundle.initial(tiny_recipe(tmp_path / "model")))
    questions = [question for question, _ in LESSONS]
    settings = answerer.bundle.recipe.train.memory
    states = question_tokens(answerer.backbone, [*questions, *REPLAY], settings.key_layer)
    state = place(None, answerer.backbone, states, list("abcd"), settings)
    replace(answerer.bundle, memory=state).save(tmp_path / "bundle")
    found = Bundle.load(tmp_path / "bundle").memory
    assert found is not None
    assert found.head is not None
    assert state.head is not None
    for kept, given in ((found, state), (found.head, state.head)):
        for name, tensor in given.tensors().items():
            assert torch.equal(kept.tensors()[name], tensor), name
    left = found.without({"a", "c"})
    assert left is not None
    assert (left.slots, len(left.keys), left.head) == (("b", "d"), 2, found.head)
