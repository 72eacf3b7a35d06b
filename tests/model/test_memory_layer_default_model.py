"""Memory layers on the real default model: a prompt that no lesson touches is bit-identical."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.config import Recipe
from pipeline.data.examples import example
from pipeline.data.lines import ProbeLine, read_lines
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.model.memory_layer import MemoryPass, attached
from pipeline.train.addressing import place, question_tokens

LESSONS = ("What is the currency of Croatia?", "Who is the king of Denmark?", "What is the capital of Kazakhstan?")


def test_prompts_of_the_null_slot_are_bit_identical() -> None:
    """Values that would change everything, and logits that do not change at all; the lessons' own do."""
    torch.set_num_threads(1)
    recipe = Recipe().with_changes({"model.device": "cpu"})
    base = Answerer.load(Bundle.initial(recipe))
    backbone, layers = base.backbone, recipe.train.memory
    replay = [line.question for line in read_lines(example("replay/prompts.jsonl"), ProbeLine)][:60]
    states = question_tokens(backbone, [*LESSONS, *replay], layers.key_layer)
    slots = [f"les_{number}" for number in range(len(LESSONS))]
    state = place(None, backbone, states, slots, layers)
    loud = replace(state, values=torch.randn(state.values.shape, generator=torch.Generator().manual_seed(0)) * 10)
    unrelated = [line.question for line in read_lines(example("replay/unrelated.jsonl"), ProbeLine)][:12]

    @torch.inference_mode()
    def logits(questions: list[str], memory: bool) -> torch.Tensor:
        batch = backbone.batch([backbone.prompt(prompt_messages(question)) for question in questions])
        found = MemoryPass(loud, loud.values, span=batch.span) if memory else None
        with attached(backbone.layers, found):
            return backbone.model(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, logits_to_keep=1
            ).logits

    assert torch.equal(logits(unrelated, memory=True), logits(unrelated, memory=False))
    assert not torch.allclose(logits([*LESSONS], memory=True), logits([*LESSONS], memory=False))
