"""Lessons written into ordinary weights by gradient steps: what most people try first.

``fine_tuning``          each lesson as it comes, until it is learned; nothing is rehearsed
``replay_fine_tuning``   the whole log anew, from the uncorrected weights, after every batch of lessons
``lora_replay``          the same, into low-rank maps beside the frozen weights (Hu et al. 2022)

A stream hands all lessons between two exams over as one batch, so that the last two are spared an update after each
lesson, which would end in the same place after many times the work.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.data.lines import LessonLine
from pipeline.evaluate.protocol import prompt_messages
from pipeline.evaluate.seam import Reply, generate
from pipeline.memory.pair_encoder import LowRank
from pipeline.memory.types import question_key
from pipeline.model.answerer import Answerer
from pipeline.model.backbone import Backbone
from pipeline.train.sequences import Continuation, lesson_sequence, logits_of_whole

LEARNED = 0.02  # mean loss per token at which training stops
ONLINE_STEPS = 20  # at most, per lesson
EPOCHS = 30  # at most, over the log
BATCH = 16
DENSE_RATE, LORA_RATE = 2e-5, 1e-3
RANK = 8
SEED = 0


class _Trained:
    """A copy of the answerer whose weights are changed."""

    def __init__(self, answerer: Answerer) -> None:
        self._original = answerer
        self._start()

    def ask(self, questions: Sequence[str]) -> list[Reply]:
        texts = generate(self._answerer, [prompt_messages(question) for question in questions])
        return [Reply(text, from_memory=None) for text in texts]

    def size_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self._parameters)

    def _start(self) -> None:
        """The uncorrected weights again."""
        original = self._original.backbone
        model = copy.deepcopy(original.model)
        self._parameters = self._trainable(model)
        self._backbone = Backbone(model, original.tokenizer, original.digest)
        self._answerer = Answerer(self._original.bundle, self._backbone)

    def _trainable(self, model: Any) -> list[nn.Parameter]:
        return list(model.requires_grad_(True).parameters())

    def _step(self, optimizer: torch.optim.Optimizer, sequences: Sequence[Continuation]) -> float:
        """One gradient step; the mean loss per token before it."""
        with torch.enable_grad():
            logits, targets = logits_of_whole(self._backbone, sequences)
            log_p = logits.float().log_softmax(-1)
            loss = -(log_p.gather(-1, targets.ids[..., None])[..., 0] * targets.valid).sum() / targets.valid.sum()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


class FineTuning(_Trained):
    """Naive online fine-tuning of all weights."""

    def __init__(self, answerer: Answerer) -> None:
        super().__init__(answerer)
        self._optimizer = torch.optim.AdamW(self._parameters, lr=DENSE_RATE, weight_decay=0.0)

    def teach(self, lines: Sequence[LessonLine]) -> None:
        for line in lines:
            sequence = [lesson_sequence(self._backbone, line.question, line.answer)]
            for _ in range(ONLINE_STEPS):
                if self._step(self._optimizer, sequence) <= LEARNED:
                    break


class ReplayFineTuning(_Trained):
    """All weights, trained on the whole log."""

    rate = DENSE_RATE

    def __init__(self, answerer: Answerer) -> None:
        super().__init__(answerer)
        self._log: dict[str, LessonLine] = {}

    def teach(self, lines: Sequence[LessonLine]) -> None:
        self._log |= {question_key(line.question): line for line in lines}
        self._start()
        optimizer = torch.optim.AdamW(self._parameters, lr=self.rate, weight_decay=0.0)
        sequences = [lesson_sequence(self._backbone, line.question, line.answer) for line in self._log.values()]
        draw = random.Random(SEED)
        for _ in range(EPOCHS):
            losses = [self._step(optimizer, batch) for batch in _batches(sequences, draw)]
            if sum(losses) / len(losses) <= LEARNED:
                break


class LoraReplay(ReplayFineTuning):
    """Low-rank maps on every linear map of the decoder's layers, trained on the whole log."""

    rate = LORA_RATE

    def _trainable(self, model: Any) -> list[nn.Parameter]:
        model.requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            return list(_with_low_rank(model))


def _with_low_rank(model: Any) -> Iterator[nn.Parameter]:
    """Put a low-rank map beside each linear map of the layers; its parameters."""
    layers = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(parent, LowRank):
                added = LowRank(child, RANK).to(child.weight)
                setattr(parent, name, added)
                yield from (added.down, added.up)


def _batches(sequences: Sequence[Continuation], draw: random.Random) -> Iterator[list[Continuation]]:
    shuffled = draw.sample(sequences, len(sequences))
    for start in range(0, len(shuffled), BATCH):
        yield shuffled[start : start + BATCH]
