"""The method ``text``: a decoder predicts the next token of text, all of its weights trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import TrainSettings
from pipeline.data.tokens import Blocks
from pipeline.model.answerer import Answerer
from pipeline.model.backbone import Backbone
from pipeline.model.bundle import Bundle
from pipeline.train.dataset import TrainingSet
from pipeline.train.learner import Learner, Share
from pipeline.train.utilisation import flops_per_token


@dataclass(frozen=True)
class BlockTask:
    """One block of text."""

    row: int
    tokens: int
    home: int | None = None


class TextLearner(Learner):
    """Parameters: the whole decoder. Cross-entropy of every token given those before it in its block."""

    def __init__(self, backbone: Backbone, blocks: Blocks) -> None:
        super().__init__()
        self.model = backbone.model
        self._text, self._layers = (blocks,), (list(backbone.layers),)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self._layers[0]

    def forward(self, tasks: Sequence[BlockTask], replay_weight: float) -> Tensor:
        ids = torch.from_numpy(self._text[0].rows([task.row for task in tasks])).to(self.model.device)
        return next_token_loss(self.model, ids) + self.anchor()


def next_token_loss(model: Any, ids: Tensor) -> Tensor:
    """(batch, context + 1) -> cross-entropy in nats, summed over batch * context targets."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


class TextMethod:
    """Every epoch takes all blocks but those held out, in another order."""

    replay_tasks: list[Any] = []  # noqa: RUF012  # nothing was known before

    def __init__(self, answerer: Answerer, data: TrainingSet, settings: TrainSettings, share: Share) -> None:
        if data.text is None:
            raise ValueError("train.method = 'text' needs text: a training set with tokenised blocks")
        self.answerer = answerer
        backbone = Answerer.load(answerer.bundle).backbone  # weights of its own
        self.model = backbone.model.float().requires_grad_(True)
        self.blocks = Blocks(Path(data.text))
        self.learner: Learner = TextLearner(backbone, self.blocks)
        self.context = self.blocks.rows([0]).shape[1] - 1
        config, weights = self.model.config, sum(p.numel() for p in self.model.parameters())
        self.flops_per_token = flops_per_token(weights, len(backbone.layers), config.hidden_size, self.context)

    def tasks_of(self, epoch: int) -> list[BlockTask]:
        return [BlockTask(row, self.context) for row in self.blocks.trained]

    def result(self) -> Bundle:
        return self.answerer.bundle.with_weights(self.model)


@torch.inference_mode()
def held_out(backbone: Backbone, blocks: Blocks, at_most: int = 256, batch: int = 8) -> dict[str, float]:
    """How well text is predicted that was never trained.

    loss: nats per token; perplexity = exp(loss); bits_per_byte = nats / (ln 2 * bytes of UTF-8 predicted), which
    does not depend on the tokenizer.
    """
    rows = list(blocks.held_out)[:at_most]
    nats, tokens, size = 0.0, 0, 0
    for start in range(0, len(rows), batch):
        ids = torch.from_numpy(blocks.rows(rows[start : start + batch]))
        nats += float(next_token_loss(backbone.model, ids.to(backbone.device)))
        tokens += ids[:, 1:].numel()
        size += sum(len(text.encode()) for text in backbone.tokenizer.batch_decode(ids[:, 1:]))
    loss = nats / tokens
    return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": nats / (math.log(2) * size), "tokens": tokens}
