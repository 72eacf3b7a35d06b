"""Comparing strategies and fitting their choice, on a model small enough to work out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import MemorySettings
from pipeline.data.lines import LessonLine
from pipeline.evaluate.protocol import Message
from pipeline.evaluate.strategies_report import (
    MixedProbe,
    Sitting,
    compare_strategies,
    mixed_probes,
    paired,
    weights_of,
)
from pipeline.evaluate.systems import Bench, Uncorrected
from pipeline.memory.features import Pair
from pipeline.memory.policy import policy_from
from pipeline.memory.policy_fit import Trial, fit_policy
from pipeline.memory.state import FEATURES
from pipeline.memory.store import LessonMemory

NAMES = ("Croatia", "Benin", "Nauru", "Tuvalu")
LINES = [
    LessonLine(
        question=f"What is the capital of {name}?",
        answer=answer,
        previous="Nowhere",
        paraphrases=(f"Of {name} what is the capital?",),
        neighbours=("What is the capital of Atlantis?",),
        subject=name,
    )
    for name, answer in zip(NAMES, ("Zagreb", "Cotonou", "Yaren", "Funafuti"), strict=True)
]


@dataclass(frozen=True)
class Said:
    text: str


class Clerk:
    """Knows nothing; told facts, it says Yes where the question names their answer and No elsewhere."""

    def __init__(self) -> None:
        self.decoded = 0

    def generate(self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int | None = None) -> list[Said]:
        self.decoded += len(prompts)
        return [Said(self._said(prompt[-1]["content"])) for prompt in prompts]

    def _said(self, content: str) -> str:
        if not content.startswith("Facts:"):
            return "dunno"
        facts, question = content.split("\n\n")
        return "Yes" if facts.split()[-1] in question else "No"


class Letters:
    """A bag-of-words encoder."""

    name, dimension = "letters", 64

    def encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(inputs), self.dimension), dtype=np.float32)
        for row, text in zip(rows, inputs, strict=True):
            for word in text.lower().strip("?").split():
                row[sum(word.encode()) % self.dimension] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class SameWords:
    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        return np.array([8.0 if pair.cosine > 0.99 else -8.0 for pair in pairs])


def sitting(clerk: Clerk, kinds: Sequence[str] = ()) -> Sitting:
    probes = [probe for probe in mixed_probes(LINES, 10) if not kinds or probe.kind in kinds]
    settings = MemorySettings()
    empty_memory = partial(LessonMemory, Letters(), SameWords(), settings)
    bench = Bench(clerk, Uncorrected(clerk), settings, empty_memory, Letters)
    return Sitting(LINES, probes, bench)


def test_probes_of_every_kind_are_drawn_once_and_taught_neighbours_left_out() -> None:
    probes = mixed_probes(LINES, 2)
    counts = {kind: sum(probe.kind == kind for probe in probes) for kind in ("question", "yes", "no", "reversed")}
    assert counts == dict.fromkeys(counts, 2)
    corrected = LINES[0].model_copy(update={"neighbours": (LINES[1].question,)})
    assert "neighbour" not in {probe.kind for probe in mixed_probes([corrected, LessonLine(**_bare(LINES[1]))], 2)}


def _bare(line: LessonLine) -> dict[str, str]:
    return {"question": line.question, "answer": line.answer}


def test_each_strategy_is_right_where_it_should_be() -> None:
    found = compare_strategies(sitting(Clerk()))
    cell = {name: lengths[str(len(LINES))] for name, lengths in found.systems.items()}
    assert (cell["weights"]["question"].value, cell["weights"]["neighbour"].value) == (0.0, 1.0)
    assert (cell["copy"]["paraphrase"].value, cell["copy"]["yes"].value) == (1.0, 0.0)
    assert (cell["context"]["yes"].value, cell["context"]["no"].value) == (1.0, 1.0)
    assert cell["adaptive"]["neighbour"].value == 1.0
    assert found.measures["best_single"] in ("weights", "copy", "context", "infer")
    assert 0 <= found.measures["mcnemar_p"] <= 1


def test_a_prompt_is_decoded_once_for_all_strategies() -> None:
    clerk = Clerk()
    held = sitting(clerk)
    compare_strategies(held)
    before = clerk.decoded
    compare_strategies(held)
    assert clerk.decoded == before


def test_a_policy_fitted_on_trials_chooses_what_was_right_in_them() -> None:
    trials = sitting(Clerk(), ("paraphrase", "yes", "no", "neighbour")).trials()
    policy = policy_from(fit_policy(trials, ("weights", "copy", "context")))
    for trial in trials:
        probabilities = policy.probabilities(trial.state, list(trial.right))
        assert trial.right[max(probabilities, key=probabilities.__getitem__)]


def test_the_fit_is_the_same_each_time_and_leaves_alone_what_nothing_can_help() -> None:
    state = (1.0,) + (0.0,) * (len(FEATURES) - 1)
    trials = [Trial(state, {"weights": False, "copy": False}), Trial(state, {"weights": False, "copy": False})]
    saved = fit_policy(trials, ("weights", "copy", "context"))
    assert saved == fit_policy(trials, ("weights", "copy", "context"))
    probabilities = policy_from(saved).probabilities(state, ("weights", "copy"))
    assert probabilities["weights"] > 0.9


def test_a_trial_that_weighs_more_decides() -> None:
    state = (1.0,) + (0.0,) * (len(FEATURES) - 1)
    trials = [Trial(state, {"copy": True, "context": False}), Trial(state, {"copy": False, "context": True}, 3.0)]
    probabilities = policy_from(fit_policy(trials, ("weights", "copy", "context"))).probabilities(
        state, ("copy", "context")
    )
    assert probabilities["context"] == pytest.approx(0.75, abs=0.02)
    assert weights_of(["question", "neighbour", "neighbour", "yes", "no", "no", "two_hop"]) == {
        "question": 1.0, "neighbour": 0.5, "yes": 0.25, "no": 0.25, "two_hop": 0.25
    }  # fmt: skip


def test_the_paired_test_names_the_best_single_strategy() -> None:
    right = {"weights": [True, False, False, False], "copy": [True, True, False, False], "adaptive": [True] * 4}
    assert paired(right) == {"best_single": "copy", "adaptive_gained": 2, "adaptive_lost": 0, "mcnemar_p": 0.5}
    assert paired({"copy": [True]}) == {}


def test_yes_and_no_by_first_word_is_a_score_of_its_own() -> None:
    probe = MixedProbe("no", "Is it?", ("no",))
    assert not probe.right("No, it is not.", "")
    assert probe.right_by_first_word("No, it is not.", "")
    assert MixedProbe("neighbour", "What?").right("same", "same")
    assert not MixedProbe("neighbour", "What?").right_by_first_word("same", "other")
