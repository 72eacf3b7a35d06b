"""What keeps a dense update from forgetting: low-rank maps, penalties, merging."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pipeline.config import Recipe, TrainSettings
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.answerer import Answerer
from pipeline.train.distributed import Sharing
from pipeline.train.learner import Learner
from pipeline.train.loop import Loop
from pipeline.train.methods import DenseMethod, LessonTask, LoraMethod, build_method
from pipeline.train.penalties import build_penalty, fisher
from tests.tiny import LESSONS, tiny_training_set

QUESTIONS = [question for question, _ in LESSONS]
ANSWERS = [answer for _, answer in LESSONS]


def trained(recipe: Recipe, base: Answerer, **values: Any) -> DenseMethod:
    chosen = {"method": "full", "epochs": 40, "learning_rate": 0.01, "target_loss": 0.0, **values}
    settings = recipe.with_changes({f"train.{name}": value for name, value in chosen.items()}).train
    torch.manual_seed(0)
    method = build_method(base, tiny_training_set(), settings, Sharing())
    assert isinstance(method, DenseMethod)
    list(Loop(method, settings).run())
    return method


def texts(answerer: Answerer, questions: Sequence[str]) -> list[str]:
    return [answer.text for answer in answerer.generate([prompt_messages(question) for question in questions])]


def distance(method: DenseMethod, base: Answerer) -> float:
    old = dict(base.backbone.model.named_parameters())
    changed = method.result().tensors
    return float(sum((value - old[name]).square().sum() for name, value in changed.items()))


# low-rank maps


def test_low_rank_maps_learn_and_are_served_merged(recipe: Recipe, base: Answerer, tmp_path: Path) -> None:
    """The bundle says what the adapted model says; so does peft with the exported adapter on the base model."""
    method = trained(recipe, base, method="lora", epochs=80)  # a greater step misses an answer on some processors
    assert isinstance(method, LoraMethod)
    assert {name.split(".")[-3] for name, p in method.adapted.named_parameters() if p.requires_grad} == {
        "lora_A", "lora_B",
    }  # fmt: skip
    bundle = method.result()
    served = Answerer.load(bundle, share=base)
    assert texts(served, QUESTIONS) == ANSWERS
    assert texts(base, QUESTIONS) != ANSWERS
    ids = served.backbone.batch([served.backbone.prompt(prompt_messages(QUESTIONS[0]))]).ids
    method.export(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    fresh = AutoModelForCausalLM.from_pretrained(recipe.model.base.removeprefix("hf:"), dtype=torch.float32)
    with torch.no_grad():
        expected = method.adapted(input_ids=ids).logits
        torch.testing.assert_close(served.backbone.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(PeftModel.from_pretrained(fresh, tmp_path)(ids).logits, expected)


def test_a_low_rank_update_has_that_rank(recipe: Recipe, base: Answerer) -> None:
    method = trained(recipe, base, method="lora", epochs=2, **{"lora.rank": 3})
    name, value = next(iter(method.result().tensors.items()))
    moved = value - dict(base.backbone.model.named_parameters())[name]
    assert int(torch.linalg.matrix_rank(moved, rtol=1e-4)) == 3


# penalties


class Line(Learner):
    """-log p of a task is w . x: its gradient is x."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, tasks: Sequence[LessonTask], replay_weight: float) -> Tensor:
        return torch.stack([(self.weights * torch.tensor(task.sequence)).sum() for task in tasks]).sum()


def line(**settings: Any) -> tuple[Line, Any]:
    learner = Line()
    tasks = [LessonTask(x, True, i) for i, x in enumerate([(1.0, 0.0, 2.0), (3.0, 0.0, 0.0)])]  # type: ignore[arg-type]
    method: Any = SimpleNamespace(learner=learner, reference_tasks=tasks)
    return learner, build_penalty(method, TrainSettings(method="full", **settings))


def test_fisher_is_the_mean_squared_gradient() -> None:
    """Gradients (1, 0, 2) and (3, 0, 0): (1 + 9) / 2, 0, (4 + 0) / 2."""
    learner, _ = line()
    tasks = [LessonTask(x, True, i) for i, x in enumerate([(1.0, 0.0, 2.0), (3.0, 0.0, 0.0)])]  # type: ignore[arg-type]
    (found,) = fisher(learner, tasks)
    assert found.tolist() == [5.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [("none", [7.0, 7.0, 7.0]), ("l2", [7.2, 7.0, 6.9]), ("ewc", [8.0, 7.0, 6.8])],
)
def test_a_penalty_pulls_towards_the_start(penalty: str, expected: list[float]) -> None:
    """Moved by (2, 0, -1), weight .1: l2 adds (.2, 0, -.1), ewc F = (5, 0, 2) times that."""
    learner, found = line(penalty=penalty, penalty_weight=0.1)
    learner.weights.data += torch.tensor([2.0, 0.0, -1.0])
    learner.weights.grad = torch.full((3,), 7.0)
    found.add_gradients(learner)
    assert learner.weights.grad.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("penalty", "weight"), [("l2", 3.0), ("ewc", 30.0)])
def test_a_held_update_stays_nearer_to_its_start(recipe: Recipe, base: Answerer, penalty: str, weight: float) -> None:
    short = {"epochs": 10, "optimizer": "sgd", "learning_rate": 0.3}
    free = trained(recipe, base, **short)
    held = trained(recipe, base, **short, penalty=penalty, penalty_weight=weight, fisher_prompts=8)
    assert 0 < distance(held, base) < 0.8 * distance(free, base)


def test_merging_goes_part_of_the_way(recipe: Recipe, base: Answerer) -> None:
    """The same training; half of the way is a quarter of the squared distance."""
    full, half = (trained(recipe, base, epochs=2, merge=merge) for merge in (1.0, 0.5))
    assert distance(half, base) == pytest.approx(distance(full, base) / 4, rel=1e-4)
