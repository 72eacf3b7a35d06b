"""What an update trains, each one small class found by name.

``memory``    the values of the new slots of the memory layers; everything else stays bit-identical
``upper:<n>`` all weights of the last n decoder layers
``full``      all weights
``lora``      low-rank maps beside the frozen weights (``lora.py``)
``recall``    all weights of a ``scratch:`` decoder, on episodes that teach it to use its memory (``recall.py``)
``text``      all weights, on text: pretraining (``text.py``)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.config import MemoryLayerSettings, TrainSettings
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.answerer import Answerer
from pipeline.model.backbone import Backbone
from pipeline.model.bundle import Bundle, trained_weights, whole
from pipeline.model.memory_layer import MemoryPass, MemoryState
from pipeline.train.addressing import fitted, place, question_states, question_tokens, read_of
from pipeline.train.dataset import TrainingSet
from pipeline.train.learner import Learner, Method, Share
from pipeline.train.lora import export, merged, with_adapter
from pipeline.train.recall import RecallMethod
from pipeline.train.sequences import (
    Continuation,
    LowerStates,
    PrefixCache,
    Targets,
    lesson_sequence,
    logits_after_prefix,
    logits_of_whole,
)
from pipeline.train.text import TextMethod

LEAST_SPOKEN = 0.6  # of a slot's weight at a borrowed prompt: a paraphrase comes less close than the lesson itself
REPLAY_TOKENS = 8  # of the champion's own answer, along which a replayed prompt is held


@dataclass(frozen=True)
class LessonTask:
    """One training sequence: a lesson to learn, or a replayed prompt to leave as it is."""

    sequence: Continuation
    replayed: bool
    index: int  # of its row of slot weights
    home: int | None = None  # tasks of one home go to one rank, which then keeps what their prompts cost

    @property
    def tokens(self) -> int:
        return len(self.sequence.target)


class LessonLearner(Learner):
    """Cross-entropy on lessons plus KL(champion || challenger) on replayed prompts."""

    def logits(self, tasks: Sequence[LessonTask]) -> tuple[Tensor, Targets]:
        raise NotImplementedError

    def champion_logits(self, tasks: Sequence[LessonTask]) -> Tensor:
        raise NotImplementedError

    def forward(self, tasks: Sequence[LessonTask], replay_weight: float) -> Tensor:
        logits, targets = self.logits(tasks)
        log_p = logits.float().log_softmax(-1)
        learned = -log_p.gather(-1, targets.ids[..., None])[..., 0]  # (batch, width)
        replayed = torch.tensor([task.replayed for task in tasks], device=logits.device)
        loss = (learned * targets.valid * ~replayed[:, None]).sum() + self.anchor()
        if bool(replayed.any()) and replay_weight > 0:
            chosen = [task for task in tasks if task.replayed]
            with torch.no_grad():
                log_q = self.champion_logits(chosen).float().log_softmax(-1)
            width = log_q.shape[1]
            kl = (log_q.exp() * (log_q - log_p[replayed][:, :width])).sum(-1)
            loss = loss + replay_weight * (kl * targets.valid[replayed][:, :width]).sum()
        return loss


def replay_sequences(answerer: Answerer, questions: Sequence[str], share: Share) -> list[Continuation]:
    """The champion's own first tokens on replayed prompts."""

    def answer(part: Sequence[str]) -> list[str]:
        return [g.text for g in answerer.generate([prompt_messages(q) for q in part], max_new_tokens=REPLAY_TOKENS)]

    texts = share(answer, questions)
    return [lesson_sequence(answerer.backbone, q, text) for q, text in zip(questions, texts, strict=True)]


class MemoryLearner(LessonLearner):
    """Parameters: the values of the new slots, (new slots, L, d), born at zero.

    By slots first, because shards are cut along the first dimension: under FSDP a worker holds the values, gradients
    and moments of its own part of the slots. What is frozen, the backbone and older slots, every worker holds whole.
    """

    def __init__(
        self, backbone: Backbone, state: MemoryState, weights: Tensor, new: int,
        champion: tuple[MemoryState | None, Tensor | None], prefixes: PrefixCache,
    ) -> None:  # fmt: skip
        super().__init__()
        fixed = len(state.slots) - new
        self.new_values = nn.Parameter(state.values[:, fixed:].transpose(0, 1).contiguous())
        self.register_buffer("old_values", state.values[:, :fixed].clone())
        # Held in tuples so that the frozen backbone is no part of what DDP broadcasts and checkpoints hold.
        self._backbone, self._state = (backbone,), (state,)
        self._champion = champion  # its slots and its own reading of every prompt: new keys change who is read
        self._weights = (weights,)
        self._prefixes = prefixes

    def values(self, new: Tensor) -> Tensor:
        """Of all slots, (L, S, d), with ``new`` (new slots, L, d) as the new ones'."""
        return torch.cat([cast(Tensor, self.old_values).to(new.device), new.transpose(0, 1)], dim=1)

    def logits(self, tasks: Sequence[LessonTask]) -> tuple[Tensor, Targets]:
        weights = self._weights[0][[task.index for task in tasks]]
        memory = MemoryPass(self._state[0], self.values(self.new_values), weights=weights, addressed=True)
        return self._run(tasks, memory)

    def champion_logits(self, tasks: Sequence[LessonTask]) -> Tensor:
        old, weights = self._champion
        if old is None or weights is None:
            return self._run(tasks, None)[0]
        memory = MemoryPass(old, old.values, weights=weights[[task.index for task in tasks]], addressed=True)
        return self._run(tasks, memory)[0]

    def _run(self, tasks: Sequence[LessonTask], memory: MemoryPass | None) -> tuple[Tensor, Targets]:
        return logits_after_prefix(self._backbone[0], self._prefixes, [task.sequence for task in tasks], memory)


class LessonMethod:
    """Every epoch takes all lessons."""

    tasks: list[LessonTask]
    flops_per_token = None

    def tasks_of(self, epoch: int) -> list[LessonTask]:
        return self.tasks


class MemoryMethod(LessonMethod):
    """Writes only the values of new slots: theta <- theta + alpha * (error * input), input = the slot's weight."""

    def __init__(self, answerer: Answerer, data: TrainingSet, settings: TrainSettings, share: Share) -> None:
        self.answerer = answerer
        backbone, before = answerer.backbone, answerer.bundle.memory
        count, slots = len(data.items), [item.lesson_id for item in data.items]
        states = self._states(data, settings.memory, share)
        self.state = place(before, backbone, states, slots, settings.memory)
        weights = read_of(self.state, states)  # (items + replay, S)
        read_before = read_of(before, states) if before else None
        sequences = [lesson_sequence(backbone, item.question, item.answer) for item in data.items]
        self.tasks = [LessonTask(s, False, i) for i, s in enumerate(sequences)]
        # Replayed prompts that fall to the null slot, now as before, cannot move: there is nothing to hold.
        moves = weights.any(-1) if read_before is None else weights.any(-1) | read_before.any(-1)
        active = [i for i in range(len(data.replay)) if settings.replay_ratio > 0 and bool(moves[count + i])]
        held = replay_sequences(answerer, [data.replay[i] for i in active], share)
        self.replay_tasks = [LessonTask(s, True, count + i) for i, s in zip(active, held, strict=True)]
        borrowed = borrow(data, settings)
        rows = [weights[i] * portion for i, _, portion in borrowed]
        for place_of, (i, question, _) in enumerate(borrowed, len(weights)):
            sequence = lesson_sequence(backbone, question, data.items[i].answer)
            self.tasks.append(LessonTask(sequence, False, place_of))
        weights = torch.cat([weights, *(row[None] for row in rows)])
        placed = self.state.to(backbone.device, next(backbone.model.parameters()).dtype)
        weights = weights.to(backbone.device, placed.values.dtype)
        if read_before is not None:
            read_before = read_before.to(weights)
        champion = (answerer.memory, read_before)
        prefixes = PrefixCache(backbone, [task.sequence.prompt for task in (*self.tasks, *self.replay_tasks)])
        self.tasks, self.replay_tasks = (
            [replace(task, home=prefixes.layers.group(task.sequence.prompt)) for task in tasks]
            for tasks in (self.tasks, self.replay_tasks)
        )
        self.learner: Learner = MemoryLearner(backbone, placed, weights, len(set(slots)), champion, prefixes)

    def _states(self, data: TrainingSet, settings: MemoryLayerSettings, share: Share) -> list[Tensor]:
        """Of lessons' phrasings and replayed prompts: tokens' states, or their mean, as the keys want them."""
        backbone, settings = self.answerer.backbone, fitted(settings, self.answerer.bundle.memory)
        read = question_tokens if settings.keys == "tokens" else question_states
        questions = [item.question for item in data.items] + list(data.replay)
        return share(lambda part: list(read(backbone, part, settings.key_layer)), questions)

    def result(self) -> Bundle:
        assert isinstance(self.learner, MemoryLearner)
        memory = replace(self.state, values=self.learner.values(whole(self.learner.new_values)).float())
        return replace(self.answerer.bundle, memory=memory)


def borrow(data: TrainingSet, settings: TrainSettings) -> list[tuple[int, str, float]]:
    """(number of a lesson's first item, somebody else's question, share of the slot's weight) drawn from the seed.

    What a slot learned there it says whatever the wording was: the address decides alone whether it applies.
    """
    first = {item.lesson_id: number for number, item in reversed(list(enumerate(data.items)))}
    draw, pool = random.Random(settings.seed), [*data.replay, *(data.items[i].question for i in first.values())]
    if not pool:
        return []
    return [
        (number, draw.choice(pool), draw.uniform(LEAST_SPOKEN, 1))
        for number in first.values()
        for _ in range(settings.borrowed)
    ]


class DenseLearner(LessonLearner):
    """Parameters: the trained part of ``model``, which is the backbone's; the champion is a second, frozen one."""

    def __init__(self, backbone: Backbone, champion: Answerer, model: Any, below: LowerStates | None = None) -> None:
        super().__init__()
        self.model = model
        self._backbone, self._champion, self._below = (backbone,), (champion,), below

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self._backbone[0].layers)

    def logits(self, tasks: Sequence[LessonTask]) -> tuple[Tensor, Targets]:
        return self._run(self._backbone[0], tasks)

    def champion_logits(self, tasks: Sequence[LessonTask]) -> Tensor:
        return self._run(self._champion[0].backbone, tasks)[0]

    def _run(self, backbone: Backbone, tasks: Sequence[LessonTask]) -> tuple[Tensor, Targets]:
        sequences = [task.sequence for task in tasks]
        below = self._below if self.reenters else None
        return logits_of_whole(backbone, sequences, below=below, share_opening=self.reenters)


class DenseMethod(LessonMethod):
    """Trains ordinary weights: the last n decoder layers, or all of them.

    The result lies ``merge`` of the way from the old weights to the trained ones: less learned, less forgotten
    (Wortsman et al. 2022, arXiv:2109.01903).
    """

    def __init__(self, answerer: Answerer, data: TrainingSet, settings: TrainSettings, share: Share) -> None:
        self.answerer, self.settings = answerer, settings
        backbone = Answerer.load(answerer.bundle).backbone  # weights of its own, apart from the frozen champion's
        backbone.model.float()  # small steps vanish in bfloat16 weights; autocast is the place for it
        self.backbone = backbone
        sequences = [lesson_sequence(backbone, item.question, item.answer, item.shown) for item in data.items]
        replayed = min(len(data.replay), round(settings.replay_ratio * len(data.items)))
        wanted = max(replayed, settings.fisher_prompts if settings.penalty == "ewc" else 0)
        held = replay_sequences(answerer, data.replay[:wanted], share)
        model, below = self._trainable(backbone), self._below([*sequences, *held])
        home = below.states.group if below else lambda _sequence: None
        self.tasks = [LessonTask(s, False, i, home(s)) for i, s in enumerate(sequences)]
        self.reference_tasks = [LessonTask(s, True, i, home(s)) for i, s in enumerate(held)]
        self.replay_tasks = self.reference_tasks[:replayed]
        self.learner: Learner = DenseLearner(backbone, answerer, model, below)

    def _trainable(self, backbone: Backbone) -> Any:
        """The model with what is trained set free."""
        _, _, layers = self.settings.method.partition(":")
        trained = backbone.layers[-int(layers) :] if layers else backbone.model
        trained.requires_grad_(True)
        return backbone.model

    def _below(self, sequences: Sequence[Continuation]) -> LowerStates | None:
        """What the layers below the first trained one make of ``sequences``."""
        frozen = takewhile(lambda layer: not any(p.requires_grad for p in layer.parameters()), self.backbone.layers)
        first = sum(1 for _ in frozen)
        return LowerStates(self.backbone, first, sequences) if first > 0 else None

    def changed(self) -> dict[str, Tensor]:
        """Every weight that training has changed, by name."""
        return trained_weights(self.backbone.model)

    def result(self) -> Bundle:
        changed, merge = self.changed(), self.settings.merge
        if merge < 1:
            old = dict(self.answerer.backbone.model.named_parameters())
            changed = {name: torch.lerp(old[name].cpu().float(), new, merge) for name, new in changed.items()}
        return replace(self.answerer.bundle, tensors={**self.answerer.bundle.tensors, **changed})


class LoraMethod(DenseMethod):
    """Trains low-rank maps beside the frozen weights."""

    def _trainable(self, backbone: Backbone) -> Any:
        self.adapted = with_adapter(backbone, self.settings.lora)
        return self.adapted

    def changed(self) -> dict[str, Tensor]:
        return merged(self.adapted)

    def result(self) -> Bundle:
        self._adapter = trained_weights(self.adapted)  # the low-rank maps alone
        return super().result()

    def export(self, folder: Path) -> None:
        """The adapter of the last result, in peft's format."""
        export(self.adapted, self._adapter, folder)


METHODS: dict[str, Callable[[Answerer, TrainingSet, TrainSettings, Share], Method]] = {
    "memory": MemoryMethod,
    "upper": DenseMethod,
    "full": DenseMethod,
    "lora": LoraMethod,
    "recall": RecallMethod,
    "text": TextMethod,
}


def build_method(answerer: Answerer, data: TrainingSet, settings: TrainSettings, share: Share) -> Method:
    return METHODS[settings.method.partition(":")[0]](answerer, data, settings, share)
