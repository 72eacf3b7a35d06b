"""The smoke test of a machine with GPUs: ``python -m pytest -m gpu``. Without one it is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import local
from pipeline.config import Recipe
from pipeline.evaluate.protocol import prompt_messages
from pipeline.home import Home
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.train.fit import fit
from tests.tiny import LESSONS, tiny_recipe, tiny_training_set

DENSE = {"train.method": "full", "train.learning_rate": 0.01, "train.epochs": 40, "train.micro_batch": 2}
LEAN = {"train.activation_checkpointing": True, "train.compile": "inductor", "scaling.parallel": "fsdp"}
CASES: dict[str, dict[str, Any]] = {
    "memory": {},
    "ddp": {**DENSE, "train.precision": "float32"},
    "fsdp in bfloat16, recomputed, compiled": {**DENSE, **LEAN},
}


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_every_gpu_of_this_machine_trains(case: str, tmp_path: Path) -> None:
    """NCCL, autocast, sharding and compilation together; what was learned on GPUs is answered on a CPU."""
    on_gpus = {"model.device": "cuda", "scaling.use_gpu": True, "scaling.workers": torch.cuda.device_count()}
    recipe = tiny_recipe(tmp_path / "tiny")
    Bundle.initial(recipe).save(tmp_path / "champion")
    home, wanted = Home(tmp_path / "home").create(), recipe.with_changes({**on_gpus, **CASES[case]})
    with local.connect(home, Recipe()):
        found = fit(
            home, wanted, name="smoke", champion=tmp_path / "champion", data=tiny_training_set(), through_seq=0,
            cycle=1,
        )  # fmt: skip
    bundle = Bundle.load(found.bundle)
    on_a_cpu = bundle.recipe.with_changes({"model.device": "cpu", "scaling.use_gpu": False})
    said = Answerer.load(Bundle(on_a_cpu, bundle.base_digest, tensors=bundle.tensors, memory=bundle.memory)).generate(
        [prompt_messages(question) for question, _ in LESSONS]
    )
    assert [answer.text for answer in said] == [answer for _, answer in LESSONS]
