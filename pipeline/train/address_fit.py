"""Training the head that addresses memory slots (``pipeline/model/address.py``), on frozen states of the key layer.

Contrastive: a question has to find the lesson that it rewords among the batch's lessons and the null slot, and its near
misses (another subject, another relation) have to find the null slot (InfoNCE with a null: van den Oord et al. 2018).
Generated pairs, half of them near misses, ride in the same batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.data.lines import LessonLine
from pipeline.memory.router_examples import Example, generated_examples, others_of
from pipeline.model.address import AddressHead
from pipeline.model.backbone import Backbone
from pipeline.train.addressing import padded, question_tokens, whitening

RANK = 96
BATCH = 32  # lessons in a step: half of them from the user's lines, half natural ones; and as many generated pairs
WHITENED_ON = 3_000  # questions
RIDGE = 0.1
RATE = 1e-2
START, SHARPEST = 8.0, 40.0  # of the logits' scale
THRESHOLD = 0.6  # similarity at which the null slot is level, to begin with

Told = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True)
class Group:
    """One fact: wordings that ask for it, and near misses that do not."""

    same: tuple[str, ...]
    near: tuple[str, ...]


@dataclass(frozen=True)
class AddressMaterial:
    """What a head learns from."""

    lines: Sequence[Group]
    natural: Sequence[Group]
    pairs: Sequence[Example]

    @classmethod
    def of(
        cls, lines: Sequence[LessonLine], natural: Sequence[LessonLine], seed: int, generated: int = 6_000
    ) -> AddressMaterial:
        """One paraphrase and one neighbour of each of the user's lines, everything of the natural ones."""
        own = [Group((line.question, *line.paraphrases[:1]), line.neighbours[:1]) for line in lines]
        free = [Group((line.question, *line.paraphrases), (*line.neighbours, *others_of(line))) for line in natural]
        return cls([g for g in own if len(g.same) > 1], free, generated_examples(lines, seed, generated))

    def texts(self) -> list[str]:
        groups = (text for group in (*self.lines, *self.natural) for text in (*group.same, *group.near))
        return list(dict.fromkeys([*groups, *(text for pair in self.pairs for text in pair[:2])]))


class LearningHead(nn.Module):
    """The head's maps as parameters; importance is learned in the whitened space, where all directions are alike."""

    def __init__(self, mean: Tensor, whiten: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mean, self.whiten = mean, whiten
        directions = torch.linalg.qr(torch.randn(len(mean), rank, generator=generator))[0]
        self.project = nn.Parameter(whiten @ directions)
        self.importance = nn.Parameter(torch.zeros(len(mean), 2))
        self.bias = nn.Parameter(torch.zeros(2))
        self.mix = nn.Parameter(torch.tensor(-1.0))  # log-odds of the query's share
        self.scale = nn.Parameter(torch.tensor(START))
        self.threshold = nn.Parameter(torch.tensor(THRESHOLD))

    def head(self) -> AddressHead:
        return AddressHead(self.mean, self.project, self.whiten @ self.importance, self.bias, self.mix.sigmoid())

    def logits(self, queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor]) -> Tensor:
        """Padded states and spans -> (queries, 1 + keys), the null slot first."""
        head = self.head()
        similar = head.similarity(head.address(*queries), head.address(*keys))
        logits = (similar - self.threshold) * self.scale.clamp(max=SHARPEST)
        return torch.cat([logits.new_zeros(len(logits), 1), logits], dim=1)


def fit_address(
    backbone: Backbone,
    material: AddressMaterial,
    layer: int,
    seed: int = 0,
    *,
    steps: int,
    told: Told | None = None,
) -> AddressHead:
    """A head for states of decoder layer ``layer``; deterministic for one machine and number of threads."""
    texts = material.texts()
    states = dict(zip(texts, question_tokens(backbone, texts, layer), strict=True))
    return train_head(states, material, seed, steps=steps, told=told)


def train_head(
    states: Mapping[str, Tensor],
    material: AddressMaterial,
    seed: int = 0,
    *,
    steps: int,
    told: Told | None = None,
) -> AddressHead:
    """``states``: (tokens, d) of every text of the material."""
    draw = random.Random(seed)
    sample = draw.sample(sorted(states), min(WHITENED_ON, len(states)))
    mean, whiten = whitening(torch.cat([states[text].float() for text in sample]), RIDGE)
    learner = LearningHead(mean, whiten, RANK, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(
        [
            {"params": [learner.project], "lr": 0.1 * RATE * float(whiten.abs().mean())},
            {"params": [learner.importance, learner.bias, learner.mix, learner.threshold], "lr": RATE},
            {"params": [learner.scale], "lr": 10 * RATE},
        ]
    )
    for step in range(1, steps + 1):
        asked, known, wanted = _batch(material, draw)
        logits = learner.logits(_padded(states, asked), _padded(states, known))
        loss = nn.functional.cross_entropy(logits, torch.tensor(wanted))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if told is not None:
            told(step, steps, float(loss.detach()))
    return AddressHead(**{name: tensor.detach() for name, tensor in learner.head().tensors().items()})


def _padded(states: Mapping[str, Tensor], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    return padded([states[text].float() for text in texts])


def _batch(material: AddressMaterial, draw: random.Random) -> tuple[list[str], list[str], list[int]]:
    """Questions, lessons, and each question's lesson counted from 1; 0 is the null slot."""
    groups = _some(material.lines, draw) + _some(material.natural, draw)
    asked, known, wanted = [], [], []
    for number, group in enumerate(groups, 1):
        lesson, question = draw.sample(group.same, 2)
        known.append(lesson)
        asked.append(question)
        wanted.append(number)
        if group.near:
            asked.append(draw.choice(group.near))
            wanted.append(0)
    for question, lesson, same in draw.sample(list(material.pairs), min(BATCH, len(material.pairs))):
        known.append(lesson)
        asked.append(question)
        wanted.append(len(known) if same else 0)
    return asked, known, wanted


def _some(groups: Sequence[Group], draw: random.Random) -> list[Group]:
    return draw.sample(list(groups), min(BATCH // 2, len(groups)))
