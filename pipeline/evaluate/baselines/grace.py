"""A codebook on hidden states with deferral radii, after GRACE (Hartvigsen et al., NeurIPS 2023, algorithm 1).

A key is the state of the prompt's last token at one layer. An edit that lies within ``epsilon_i + epsilon`` of the
nearest key collides with it: with the same answer that key's radius grows to cover the edit, with another answer both
radii are halved to the distance between them; without a collision a new key is added with radius ``epsilon``. A query
inside the nearest key's radius gets its value, any other is deferred to the model.

Two simplifications. A value is the answer itself instead of a vector trained to decode to it, which can only help the
codebook. States are scaled to length 1, so that one radius serves models of any width; the order of distances is
nearly the same, because norms at one layer hardly vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.lines import LessonLine
from pipeline.evaluate.progress import batches
from pipeline.evaluate.protocol import normalise, prompt_messages
from pipeline.evaluate.seam import Recall, Reply, text_bytes
from pipeline.model.backbone import Backbone

# Chosen on lessons_dev, lines 0 to 199, of eight layers and eight radii: reliability .99, generality .14, locality .98
LAYER_SHARE = 0.8  # of the decoder's depth
RADIUS = 0.2  # epsilon, a distance between unit vectors

States = NDArray[np.float32]


class Encoded(Protocol):
    def encode(self, inputs: Sequence[str]) -> States: ...


class LastStates:
    """Unit state of the last prompt token after so many decoder layers; each question is computed once."""

    def __init__(self, backbone: Backbone, layer: int | None = None, batch: int = 32) -> None:
        self._backbone, self._batch = backbone, batch
        self.layer = round(LAYER_SHARE * len(backbone.layers)) if layer is None else layer
        self._known: dict[str, States] = {}

    def encode(self, inputs: Sequence[str]) -> States:
        """(n, d_model) float32."""
        new = sorted({question for question in inputs if question not in self._known}, key=len)
        for part in batches(new, self._batch):
            self._known.update(zip(part, self._states(part), strict=True))
        return np.stack([self._known[question] for question in inputs])

    @torch.inference_mode()
    def _states(self, questions: Sequence[str]) -> States:
        backbone = self._backbone
        batch = backbone.batch([backbone.prompt(prompt_messages(question)) for question in questions])
        with backbone.lock:
            last = backbone.states(batch, self.layer - 1)[:, -1]  # prompts are padded on the left
        unit: States = torch.nn.functional.normalize(last.float(), dim=-1).cpu().numpy()
        return unit


@dataclass
class Slot:
    """A key's radius and value."""

    radius: float
    answer: str


class Grace:
    def __init__(self, states: Encoded, radius: float = RADIUS) -> None:
        self._states, self._radius = states, radius
        self._keys: States = np.zeros((0, 0), dtype=np.float32)  # room for twice the slots, at most
        self.slots: list[Slot] = []

    def teach(self, lines: Sequence[LessonLine]) -> None:
        for line, state in zip(lines, self._states.encode([line.question for line in lines]), strict=True):
            self._edit(state, line.answer)

    def ask(self, questions: Sequence[str]) -> list[Reply]:
        if not self.slots:
            return [Reply()] * len(questions)
        return [self._recall(state).reply for state in self._states.encode(questions)]

    def size_bytes(self) -> int:
        return self._keys[: len(self.slots)].nbytes + sum(text_bytes(slot.answer) + 4 for slot in self.slots)

    def _edit(self, state: States, answer: str) -> None:
        if not self.slots:
            self._add(state, Slot(self._radius, answer))
            return
        place, distance = self._nearest(state)
        nearest = self.slots[place]
        if distance > nearest.radius + self._radius:
            self._add(state, Slot(self._radius, answer))
        elif normalise(nearest.answer) == normalise(answer):
            nearest.radius = max(nearest.radius, distance)
        elif distance == 0:
            nearest.answer = answer  # the same prompt again: there is nothing to halve
        else:
            nearest.radius = min(nearest.radius, distance / 2)
            self._add(state, Slot(distance / 2, answer))

    def _add(self, state: States, slot: Slot) -> None:
        if len(self.slots) == len(self._keys):
            room = np.zeros((max(64, 2 * len(self._keys)), len(state)), dtype=np.float32)
            room[: len(self._keys)] = self._keys.reshape(-1, len(state))
            self._keys = room
        self._keys[len(self.slots)] = state
        self.slots.append(slot)

    def _nearest(self, state: States) -> tuple[int, float]:
        cosines = self._keys[: len(self.slots)] @ state
        place = int(cosines.argmax())
        return place, float(np.linalg.norm(self._keys[place] - state))

    def _recall(self, state: States) -> Recall:
        place, distance = self._nearest(state)
        slot = self.slots[place]
        return Recall(slot.answer, 1.0 / (1.0 + distance), distance <= slot.radius)
