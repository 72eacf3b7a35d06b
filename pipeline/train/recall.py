"""Multi-query associative recall with overwrites: what a decoder from nothing is taught, and how it is examined.

An episode tells pairs, "k1 k2 <start> v", in segments that attention runs over one at a time; a quarter of the keys is
told a second time with another value. Then it asks "k1 k2 <start>", and the next token must be the value told last.
Attention has never seen an asked pair: the answer stands in the memory, written by equation 3, or nowhere.
(Arora et al. 2023, arXiv:2312.04927, for the task; the segments and the overwrites are ours.)

A key is two bytes and a value is one. Half of all keys never occurs in training and is what an examination asks, so
chance is 1/256.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import RecallSettings, TrainSettings
from pipeline.model.answerer import Answerer
from pipeline.model.backbone import Backbone
from pipeline.model.bundle import Bundle
from pipeline.model.native_layer import Session, remembering
from pipeline.model.scratch import START
from pipeline.model.slots import Slots
from pipeline.train.dataset import TrainingSet
from pipeline.train.learner import Learner, Share

BYTES = 256
PAIR = 4  # tokens of a pair
CHANCE = 1 / BYTES
SEGMENT = 32  # pairs that attention sees together


def key_halves() -> tuple[Tensor, Tensor]:
    """(keys of training, keys of examinations): all 65,536 keys, split the same way for ever."""
    order = torch.randperm(BYTES**2, generator=torch.Generator().manual_seed(65_536))
    return order[: BYTES**2 // 2], order[BYTES**2 // 2 :]


class Episode(NamedTuple):
    """Episodes of one length, as token ids on the CPU."""

    told: Tensor  # (batch, PAIR * told pairs)
    asked: Tensor  # (batch, (PAIR - 1) * questions)
    answers: Tensor  # (batch, questions)
    outdated: Tensor  # (batch, questions) the value told first, -1 where there is only one


def draw(pool: Tensor, pairs: int, questions: int, overwritten: float, start: int, seed: int) -> Episode:
    """One episode (batch of 1): ``pairs`` different keys of ``pool``, a share of them told twice."""
    random = torch.Generator().manual_seed(seed)
    keys = pool[torch.randint(len(pool), (4 * pairs,), generator=random)]
    keys = keys[_first_occurrences(keys)][:pairs]
    values = torch.randint(BYTES, (pairs,), generator=random)
    twice = round(overwritten * pairs)
    before = torch.randint(BYTES, (twice,), generator=random)
    when = torch.rand(2, pairs, generator=random).sort(dim=0).values  # the first and the last telling of each pair
    order = torch.cat([when[0, :twice], when[1]]).argsort()
    told_keys, told_values = torch.cat([keys[:twice], keys])[order], torch.cat([before, values])[order]
    asked = torch.randperm(pairs, generator=random)[:questions]
    outdated = torch.cat([before, torch.full((pairs - twice,), -1)])[asked]
    marks = torch.full_like(told_keys, start)
    told = torch.stack([told_keys // BYTES, told_keys % BYTES, marks, told_values], dim=-1)
    ask = torch.stack([keys[asked] // BYTES, keys[asked] % BYTES, marks[: len(asked)]], dim=-1)
    return Episode(told.reshape(1, -1), ask.reshape(1, -1), values[asked][None], outdated[None])


def _first_occurrences(keys: Tensor) -> Tensor:
    return torch.tensor(list({key: i for i, key in reversed(list(enumerate(keys.tolist())))}.values())).sort().values


def together(episodes: Sequence[Episode]) -> Episode:
    """Episodes of one length as one batch."""
    return Episode(*(torch.cat(parts) for parts in zip(*episodes, strict=True)))


def start_token(backbone: Backbone) -> int:
    """The mark between a key and its value."""
    return int(backbone.tokenizer.convert_tokens_to_ids(START))


def tell(model: Any, told: Tensor, session: Session) -> list[Tensor]:
    """Write told pairs into the session, segment after segment; returns the write rates of each (batch, tokens)."""
    rates: list[Tensor] = []
    with remembering(model, session):
        for segment in told.split(PAIR * SEGMENT, dim=1):
            session.segment()
            model.model(input_ids=segment, use_cache=False)
            rates.extend(session.rates.values())
    return rates


def ask(model: Any, asked: Tensor, session: Session) -> Tensor:
    """Logits of the value of each question: (batch, questions, vocabulary). Nothing is written."""
    logits = []
    with remembering(model, session):
        for segment in asked.split((PAIR - 1) * SEGMENT, dim=1):
            session.segment(writes=False)
            states = model.model(input_ids=segment, use_cache=False).last_hidden_state
            logits.append(model.lm_head(states[:, PAIR - 2 :: PAIR - 1]))
    return torch.cat(logits, dim=1)


@dataclass(frozen=True)
class RecallTask:
    """One episode of training, a function of its seed."""

    pairs: int
    seed: int
    tokens: int  # questions
    home: int | None = None


class RecallLearner(Learner):
    """Parameters: the whole decoder. A forward pass tells, asks, and learns from the answers by backpropagation."""

    def __init__(self, model: Any, start: int, settings: RecallSettings) -> None:
        super().__init__()
        self.model, self.start, self.settings = model, start, settings
        self.pool = key_halves()[0]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.model.layers)

    def forward(self, tasks: Sequence[RecallTask], replay_weight: float) -> Tensor:
        batch = together(
            [draw(self.pool, t.pairs, t.tokens, self.settings.overwritten, self.start, t.seed) for t in tasks]
        )
        device, session = self.model.device, Session()
        rates = tell(self.model, batch.told.to(device), session)
        logits = ask(self.model, batch.asked.to(device), session).float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.answers.flatten().to(device), reduction="sum")
        return loss + self._cost(rates, loss, batch.answers.numel()) + self.anchor()

    def _cost(self, rates: list[Tensor], loss: Tensor, questions: int) -> Tensor | float:
        """Writing costs something, but only as far as memory has been learned: else it would never be used."""
        if not rates:
            return 0.0
        learned = (1 - loss.detach() / questions / torch.tensor(BYTES).log()).clamp(min=0)
        return self.settings.write_cost * questions * learned * torch.cat(rates, dim=1).mean()


class RecallMethod:
    """Trains a ``scratch:`` decoder; episodes are drawn afresh for every epoch."""

    replay_tasks: list[Any] = []  # noqa: RUF012  # nothing was known before
    flops_per_token = None

    def __init__(self, answerer: Answerer, data: TrainingSet, settings: TrainSettings, share: Share) -> None:
        self.answerer, self.settings = answerer, settings
        backbone = Answerer.load(answerer.bundle).backbone  # weights of its own
        self.model = backbone.model.requires_grad_(True)
        self.learner: Learner = RecallLearner(self.model, start_token(backbone), settings.recall)

    def tasks_of(self, epoch: int) -> list[RecallTask]:
        """Epochs take turns at the lengths, so that a batch holds episodes of one."""
        recall = self.settings.recall
        pairs = recall.pairs[epoch % len(recall.pairs)]
        seeds = range(epoch * recall.episodes, (epoch + 1) * recall.episodes)
        return [
            RecallTask(pairs, self.settings.seed * 1_000_003 + seed, min(pairs, recall.questions)) for seed in seeds
        ]

    def result(self) -> Bundle:
        return self.answerer.bundle.with_weights(self.model)


@dataclass(frozen=True)
class Examined:
    """Recall of keys that training has never seen, by greedy decoding of the value."""

    pairs: int
    right: list[bool]
    stale: list[bool]  # for overwritten keys: the value told first was given
    slots: float  # per episode; 0 where the memory has none
    seconds: float


@torch.inference_mode()
def examine(model: Any, start: int, pairs: int, episodes: int, seed: int, overwritten: float = 0.25) -> Examined:
    """Tell and ask ``episodes`` episodes of ``pairs`` keys, at most 128 questions each."""
    began = time.monotonic()
    pool = key_halves()[1]
    batch = together([draw(pool, pairs, min(pairs, 128), overwritten, start, seed + n) for n in range(episodes)])
    session = Session()
    tell(model, batch.told.to(model.device), session)
    said = ask(model, batch.asked.to(model.device), session).argmax(-1).cpu()
    stale = (said == batch.outdated)[batch.outdated >= 0]
    slots = [state.used.sum(-1).float().mean().item() for state in session.states.values() if isinstance(state, Slots)]
    right = (said == batch.answers).flatten().tolist()
    return Examined(pairs, right, stale.tolist(), sum(slots), time.monotonic() - began)
