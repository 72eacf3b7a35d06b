"""A batch writes what its rows write alone, though they share their beginning and leave at different times."""

from __future__ import annotations

import pytest
import torch

from pipeline.evaluate.protocol import SYSTEM_PROMPT, Message, prompt_messages
from pipeline.memory.mixture import Mixture
from pipeline.model.answerer import Answerer
from pipeline.model.backbone import Opening
from tests.tiny import LESSONS, REPLAY, UNRELATED

QUESTIONS = [question for question, _ in LESSONS] + [*UNRELATED, *REPLAY]
PROMPTS = [prompt_messages(question) for question in QUESTIONS]
FACTS: list[Message] = [
    {"role": "system", "content": SYSTEM_PROMPT},
    {"role": "user", "content": "A far longer prompt: Narnia is ruled by a lion. Who rules it?"},
]


@pytest.mark.parametrize("limit", [1, 5, 40])
def test_a_batch_writes_what_each_row_writes_alone(base: Answerer, limit: int) -> None:
    prompts = [*PROMPTS, FACTS]
    together = base.generate(prompts, max_new_tokens=limit)
    assert together == [base.generate([prompt], max_new_tokens=limit)[0] for prompt in prompts]


def test_rows_of_a_mixture_leave_with_their_posterior(base: Answerer) -> None:
    shares = [{"x": 0.9}, {"longer than x": 0.9}, {"x": 0.6, "a third answer": 0.3}, None]
    mixtures = [Mixture(row) if row else None for row in shares]
    together = base.generate(PROMPTS[:4], mixtures=mixtures)
    alone = [
        base.generate([prompt], mixtures=[mixture])[0] for prompt, mixture in zip(PROMPTS[:4], mixtures, strict=True)
    ]
    assert [(row.text, row.tokens) for row in together] == [(row.text, row.tokens) for row in alone]
    assert [row.copied for row in together] == pytest.approx([row.copied for row in alone], abs=1e-5)
    assert len({row.tokens for row in together}) > 2  # they left one after the other
    assert together[0].copied > 0.9


def test_the_beginning_that_all_share_is_run_once(base: Answerer) -> None:
    prompts = [base.backbone.prompt(messages) for messages in PROMPTS]
    with torch.inference_mode():
        opening = Opening.of(base.backbone, prompts)
        alone = Opening.of(base.backbone, prompts[:1])
    assert opening.tokens == prompts[0].opening > 0  # up to the question: memory layers look at that as a whole
    assert opening.cache.get_seq_length() == opening.tokens
    assert [rest.ids for rest in opening.rest(prompts)] == [prompt.ids[opening.tokens :] for prompt in prompts]
    assert (alone.tokens, alone.rest(prompts[:1])) == (0, prompts[:1])
