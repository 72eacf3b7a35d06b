"""A sequence of update cycles, method against method at equal compute: what is learned, and what is still known.

    python -m benchmarks.cycles --lessons FILE --cycles 10 --per-cycle 100 --out cycles.json

Each method starts from the recipe's model and gets one cycle's lessons after the other, in the loop of the one train
function. After every cycle its lessons, all earlier ones and the next cycle's are asked, in the trained and in a
withheld wording (R[i][j], whole strings, greedy free generation, no lesson memory); after the last also unrelated
prompts and neighbours (output string identical), and the retention probes. Methods can be measured apart, into files
that ``--methods none --merge FILE ...`` puts into one table.

**Equal compute**: a cycle may push ``--budget`` sequences per lesson through forward and backward, replayed ones
included (the last batch is finished), and stops earlier where the mean loss per token falls to the recipe's target.
So a method that replays a growing log sees less of it, and gets no more compute. The default is what the recipe's
memory layers took at most (6 to 9); of their backward pass the lower layers are no part, so in seconds, which are
reported too, they take less.

    none        no update
    naive       fine-tuning of all weights on the cycle alone
    replay_all  ... and, half of it, on lessons drawn alike from the whole log
    lora        low-rank maps, replaying 1 % of the log
    ewc         all weights, held by Fisher information
    memory      the recipe as it is: memory layers
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import record
from pipeline.config import Recipe, load_recipe
from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, ProbeLine, RetentionProbe, read_lines
from pipeline.data.phrasing import phrasings
from pipeline.evaluate import continual
from pipeline.evaluate.answers import AnswerCache, Store, cache_file, model_name
from pipeline.evaluate.compare import matches, sample
from pipeline.evaluate.metrics import share
from pipeline.evaluate.protocol import prompt_messages
from pipeline.evaluate.retention import right
from pipeline.evaluate.shared import SharedAnswerer
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.train.dataset import TrainingSet, line_items
from pipeline.train.distributed import Sharing
from pipeline.train.loop import Loop
from pipeline.train.methods import build_method
from pipeline.train.replayed import shipped_prompts

# The lowest of 1e-5, 2e-5, 5e-5 and of 1e-4, 3e-4, 1e-3 to learn a cycle (R[0][0] >= .95 on CounterFact 3000:3050).
DENSE_RATE, LORA_RATE = 5e-5, 1e-3
LOG_SHARE = 0.01  # of the log, that lora replays

Log = Sequence[Sequence[LessonLine]]  # by cycle
History = Callable[[Log], list[LessonLine]]  # of the cycles before one


@dataclass(frozen=True)
class Entry:
    """A method of the table: what it changes in the recipe, and which earlier lessons it trains again."""

    changes: dict[str, Any]
    history: History = lambda _log: []


def a_hundredth(log: Log) -> list[LessonLine]:
    return drawn(log, round(LOG_SHARE * sum(map(len, log)) + 0.5))


def as_many(log: Log) -> list[LessonLine]:
    """As many as a cycle has."""
    return drawn(log, len(log[0]) if log else 0)


def drawn(log: Log, count: int) -> list[LessonLine]:
    """So many of the log, all alike."""
    earlier = [line for lines in log for line in lines]
    return sample(earlier, count, seed=len(earlier))


DENSE: dict[str, Any] = {
    "train.method": "full",
    "train.optimizer": "adam",
    "train.learning_rate": DENSE_RATE,
    "train.batch_size": 16,
    "train.templates": 5,  # without study wordings they forget a bare sentence faster still
    "train.replay_ratio": 0.0,
}
ENTRIES: dict[str, Entry] = {
    "naive": Entry(DENSE),
    "replay_all": Entry(DENSE, as_many),
    "lora": Entry({**DENSE, "train.method": "lora", "train.learning_rate": LORA_RATE}, a_hundredth),
    "ewc": Entry({**DENSE, "train.penalty": "ewc", "train.penalty_weight": 100.0}),
    "memory": Entry({}),
}


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    recipe = load_recipe(given.recipe)
    lines = read_lines(given.lessons, LessonLine)[given.skip :][: given.cycles * given.per_cycle]
    log = [lines[start : start + given.per_cycle] for start in range(0, len(lines), given.per_cycle)]
    if len(log) < given.cycles or len(log[-1]) < given.per_cycle:
        sys.exit(f"{given.lessons} has too few lessons for {given.cycles} cycles of {given.per_cycle}")
    start = Answerer.load(Bundle.initial(recipe))
    exam = Exam(log, given, Store(AnswerCache(cache_file(), model_name(start))))
    before = exam.reference = exam.row(exam.asker(start), len(log)) | exam.rest(exam.asker(start))
    asked = {key: value.name if isinstance(value, Path) else value for key, value in vars(given).items()}
    del asked["merge"]
    figures: dict[str, Any] = {"none": nothing_done(before, given.cycles), **merged(given.merge, asked)}

    def write() -> None:
        record.save(given.out, {"asked": asked, "n": exam.sizes(), "before": before["R"], "methods": figures})

    write()
    for name in [name for name in given.methods if name in ENTRIES]:
        figures[name] = run(name, recipe, start, log, exam, given.budget)
        report(name, figures[name])
        write()
    continual.heat_map({name: found["R"] for name, found in figures.items()}, given.out.with_suffix(".png"))


def merged(paths: Sequence[Path], asked: dict[str, Any]) -> dict[str, Any]:
    """The methods of other runs that were asked the same, each with the circumstances under which it ran."""
    figures: dict[str, Any] = {}
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        for key in set(asked) - {"methods", "threads", "out"}:
            if found["asked"][key] != asked[key]:
                sys.exit(f"{path}: it was measured with {key} = {found['asked'][key]!r}, and this is {asked[key]!r}")
        ran = {name: each for name, each in found["methods"].items() if name != "none"}
        figures |= {name: {"circumstances": found["circumstances"], **each} for name, each in ran.items()}
    return figures


class Exam:
    """What every model is asked: a row of R after every cycle, the rest after the last.

    ``reference``: the uncorrected model's sheet.
    """

    def __init__(self, log: Log, given: argparse.Namespace, store: Store) -> None:
        self.log = log
        probes = read_lines(example("retention/probes.jsonl"), RetentionProbe)
        unrelated = [line.question for line in (*read_lines(example("replay/unrelated.jsonl"), ProbeLine), *probes)]
        self.unrelated = sample(list(dict.fromkeys(unrelated)), given.unrelated, given.seed)
        taught = {line.question for lines in log for line in lines}
        neighbours = {text for lines in log for line in lines for text in line.neighbours[:1]} - taught
        self.neighbours = sample(sorted(neighbours), given.neighbours, given.seed)
        self.probes = sample(probes, given.retention, given.seed)
        self.reference: dict[str, Any] | None = None
        self._store = store

    def sizes(self) -> dict[str, int]:
        parts = {"unrelated": self.unrelated, "neighbours": self.neighbours, "retention": self.probes}
        return {"lessons_per_cycle": len(self.log[0]), **{name: len(part) for name, part in parts.items()}}

    def asker(self, answerer: Answerer) -> SharedAnswerer:
        """Answers of the start's own weights are kept for the next run; those of weights that changed serve nobody."""
        return SharedAnswerer(answerer, Store() if answerer.bundle.tensors else self._store)

    def row(self, answerer: SharedAnswerer, cycles: int) -> dict[str, Any]:
        """A row of R in both wordings, about the first ``cycles`` and none where there are no more."""
        beyond = [None] * (len(self.log) - cycles)
        trained = [[(x.question, x.answer) for x in lines] for lines in self.log[:cycles]]
        withheld = [[(text, x.answer) for x in lines for text in phrasings(x)[1]] for lines in self.log[:cycles]]
        return {
            "R": [self._right(answerer, asked) for asked in trained] + beyond,
            "R_withheld": [self._right(answerer, asked) for asked in withheld] + beyond,
        }

    def rest(self, answerer: SharedAnswerer) -> dict[str, Any]:
        """Outputs that should not move, and the retention probes."""
        return {
            "unrelated": texts(answerer, self.unrelated, self._known("unrelated")),
            "neighbours": texts(answerer, self.neighbours, self._known("neighbours")),
            "retention": right(answerer, self.probes),
        }

    def _known(self, part: str) -> list[str] | None:
        return self.reference[part] if self.reference else None

    @staticmethod
    def _right(answerer: SharedAnswerer, asked: Sequence[tuple[str, str]]) -> float:
        return share(matches(answerer, asked)).value

    def kept(self, sheet: dict[str, Any]) -> dict[str, float]:
        """Shares of the reference that still stand."""
        assert self.reference is not None
        same = {
            name: share([a == b for a, b in zip(self.reference[name], sheet[name], strict=True)]).value
            for name in ("unrelated", "neighbours")
        }
        known = [after for before, after in zip(self.reference["retention"], sheet["retention"], strict=True) if before]
        return {**same, "retention_kept": share(known).value}


def texts(answerer: SharedAnswerer, questions: Sequence[str], guesses: list[str] | None = None) -> list[str]:
    prompts = [prompt_messages(question) for question in questions]
    return [answer.text for answer in answerer.generate(prompts, guesses=guesses)]


def run(name: str, recipe: Recipe, start: Answerer, log: Log, exam: Exam, budget: int) -> dict[str, Any]:
    """One method over all cycles."""
    entry, answerer = ENTRIES[name], start
    settings = recipe.with_changes(entry.changes)
    replay = shipped_prompts()
    rows: list[dict[str, Any]] = []
    for cycle, lines in enumerate(log):
        began = time.monotonic()
        data = TrainingSet(line_items([*lines, *entry.history(log[:cycle])], settings.train.templates), replay)
        bundle, sequences = trained(answerer, data, settings, budget * len(lines))
        seconds = time.monotonic() - began
        answerer = Answerer.load(bundle, share=start)
        began, asked = time.monotonic(), exam.asker(answerer)
        known = min(cycle + 2, len(log))
        rows.append(exam.row(asked, known) | {"seconds": seconds, "sequences": sequences})
        told = f"{seconds:.0f} s training, {time.monotonic() - began:.0f} s asking {asked.asked} prompts"
        print(name, cycle + 1, [round(x, 2) for x in rows[-1]["R"][:known]], told, file=sys.stderr, flush=True)
    assert exam.reference is not None
    matrix, withheld = [row["R"] for row in rows], [row["R_withheld"] for row in rows]
    return {
        "R": matrix,
        "R_withheld": withheld,
        **continual.summary(matrix, exam.reference["R"]),
        "withheld": continual.summary(withheld, exam.reference["R_withheld"]),
        **exam.kept(exam.rest(exam.asker(answerer))),
        "seconds": [row["seconds"] for row in rows],
        "sequences": [row["sequences"] for row in rows],
    }


def nothing_done(sheet: dict[str, Any], cycles: int) -> dict[str, Any]:
    matrix = [sheet["R"]] * cycles
    kept = dict.fromkeys(("unrelated", "neighbours", "retention_kept"), 1.0)
    return {"R": matrix, **continual.summary(matrix, sheet["R"]), **kept, "seconds": [0.0] * cycles}


def trained(answerer: Answerer, data: TrainingSet, recipe: Recipe, budget: int) -> tuple[Bundle, int]:
    """The bundle after training, and how many sequences it took: ``budget``, or more by less than a batch."""
    in_epoch = round(len(data.items) * (1 + recipe.train.replay_ratio))
    epochs = min(recipe.train.epochs, math.ceil(budget / in_epoch))
    settings = recipe.with_changes({"train.epochs": epochs}).train
    torch.manual_seed(settings.seed)
    method = build_method(answerer, data, settings, Sharing())
    sequences = 0
    for step in Loop(method, settings).run():
        sequences += step.sequences
        if sequences >= budget:
            break
    return method.result(), sequences


def report(name: str, found: dict[str, Any]) -> None:
    shown = ("learned", "average_accuracy", "backward_transfer", "forgetting", "unrelated", "neighbours")
    print(name, {key: round(found[key], 3) for key in shown}, f"{sum(found['seconds']):.0f} s")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lessons", type=Path, required=True, help="lesson lines (JSONL)")
    parser.add_argument("--skip", type=int, default=0, help="lessons at the file's beginning to leave out")
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--per-cycle", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=["none", *ENTRIES], default=list(ENTRIES))
    parser.add_argument("--merge", type=Path, nargs="+", default=[], help="results of other methods, asked the same")
    parser.add_argument("--budget", type=int, default=10, help="sequences per lesson and cycle")
    parser.add_argument("--unrelated", type=int, default=1000)
    parser.add_argument("--neighbours", type=int, default=100)
    parser.add_argument("--retention", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the probes that are drawn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
