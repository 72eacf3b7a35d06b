"""The answerer as an MLflow model from code: MLflow copies this file beside the bundle and runs it to load the model.

``mlflow.pyfunc.load_model("models:/answerer@champion").predict(["What is ...?"])`` answers from the weights alone;
lessons live in the event log, so a correction that no cycle has learned yet is not in here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel


class AnswererModel(PythonModel):
    """Questions in, answers out."""

    def load_context(self, context: Any) -> None:
        from pipeline.model.answerer import Answerer
        from pipeline.model.bundle import Bundle

        self._answerer = Answerer.load(Bundle.load(Path(context.artifacts["bundle"])))

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:
        from pipeline.evaluate.protocol import prompt_messages

        prompts = [prompt_messages(question) for question in model_input]
        return [generation.text for generation in self._answerer.generate(prompts)]


mlflow.models.set_model(AnswererModel())
