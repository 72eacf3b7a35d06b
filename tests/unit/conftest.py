"""The tiny model that the training tests share."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import Recipe
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from tests.tiny import tiny_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.set_num_threads(1)
    return tiny_recipe(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def base(recipe: Recipe) -> Answerer:
    return Answerer.load(Bundle.initial(recipe))
