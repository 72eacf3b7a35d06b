"""Which strategy answers what: ordinary questions, paraphrases, neighbours, and questions where copying is wrong.

All strategies answer the same mixed probes over one lesson memory. A neighbour is right when its whole output is the
uncorrected model's; everything else when the whole output is an accepted answer. ``adaptive`` is then compared with
the best single strategy by McNemar's exact test. The same trials fit the policy's first weights, on other lines.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.lines import LessonLine, ProbeLine
from pipeline.evaluate.copy_wrong import copy_wrong, right_by_first_word
from pipeline.evaluate.metrics import Interval, discordant, mcnemar, share
from pipeline.evaluate.progress import Progress, batches
from pipeline.evaluate.protocol import exact_match, normalise, prompt_messages
from pipeline.evaluate.result import Result
from pipeline.evaluate.seam import generate
from pipeline.evaluate.systems import Bench
from pipeline.memory.belief import taught_event
from pipeline.memory.infer import read_and_infer
from pipeline.memory.mixture import Mixture
from pipeline.memory.policy_fit import Trial
from pipeline.memory.state import state_of
from pipeline.memory.strategy import Plan, Situation, plan, possible
from pipeline.memory.types import Reading, Viewer

BATCH = 32
CHOSEN = ("weights", "copy", "context")  # by the policy
SINGLES = (*CHOSEN, "infer")
COMPARED = (*SINGLES, "adaptive")
ORDINARY = ("question", "paraphrase", "neighbour")


@dataclass(frozen=True)
class MixedProbe:
    """``answers`` empty: the uncorrected output must stay as it is."""

    kind: str
    question: str
    answers: tuple[str, ...] = ()

    def right(self, text: str, uncorrected: str) -> bool:
        return exact_match(text, self.answers) if self.answers else text == uncorrected

    def right_by_first_word(self, text: str, uncorrected: str) -> bool:
        """The laxer score for yes and no, reported beside the other and labelled so."""
        return right_by_first_word(self.answers, text) if self.answers else text == uncorrected


def given_probes(lines: Sequence[ProbeLine], part: str | None = None) -> list[MixedProbe]:
    """Somebody's own, of one ``part`` if the lines have one; the field ``kind`` names what is counted together."""
    return [
        MixedProbe(str(line.extra("kind", "given")), line.question, line.answers)
        for line in lines
        if part is None or line.extra("part", part) == part
    ]


def mixed_probes(lines: Sequence[LessonLine], per_kind: int, seed: int = 0) -> list[MixedProbe]:
    """Up to ``per_kind`` of each kind, drawn without replacement.

    A neighbour that is a lesson itself or another's paraphrase is left out: it is not to stay as it was.
    """
    taught = {normalise(text) for line in lines for text in (line.question, *line.paraphrases)}
    by_kind: dict[str, list[MixedProbe]] = defaultdict(list)
    for line in lines:
        by_kind["question"].append(MixedProbe("question", line.question, (line.answer,)))
        by_kind["paraphrase"] += [MixedProbe("paraphrase", text, (line.answer,)) for text in line.paraphrases]
        fresh = [text for text in line.neighbours if normalise(text) not in taught]
        by_kind["neighbour"] += [MixedProbe("neighbour", text) for text in fresh]
    for probe in copy_wrong(lines, seed):
        by_kind[probe.kind].append(MixedProbe(probe.kind, probe.question, probe.answers))
    draw = random.Random(seed)
    return [probe for found in by_kind.values() for probe in draw.sample(found, min(per_kind, len(found)))]


class Sitting:
    """One memory that was taught ``lines``, one reading of every probe, and each prompt decoded once."""

    def __init__(
        self,
        lines: Sequence[LessonLine],
        probes: Sequence[MixedProbe],
        bench: Bench,
        progress: Progress | None = None,
    ) -> None:
        self.probes, self.lessons = list(probes), len(lines)
        self.bench = bench
        self._progress = progress
        self._decoded: dict[str, str] = {}
        memory = bench.empty_memory()
        memory.apply([taught_event(line, seq) for seq, line in enumerate(lines, 1)])
        questions = [probe.question for probe in probes]
        self.readings: list[Reading] = []
        for part in batches(questions, BATCH):
            self.readings += read_and_infer(memory, part, [Viewer()] * len(part), bench.settings.gate)
        plain = [Plan("weights", messages=prompt_messages(question)) for question in questions]
        self.uncorrected = self.answers(plain)

    def plans(self, strategy: str) -> list[Plan]:
        asked = zip(self.probes, self.readings, strict=True)
        return [plan(strategy, p.question, prompt_messages(p.question), r, self.bench.settings) for p, r in asked]

    def answers(self, plans: Sequence[Plan]) -> list[str]:
        new = {_prompt(plan): plan for plan in plans if plan.text is None and _prompt(plan) not in self._decoded}
        for part in batches(sorted(new, key=len), BATCH, self._progress):
            messages, mixtures = [new[key].messages or [] for key in part], [new[key].mixture for key in part]
            self._decoded.update(zip(part, generate(self.bench.answerer, messages, mixtures), strict=True))
        return [self._decoded[_prompt(plan)] if plan.text is None else plan.text for plan in plans]

    def trials(self) -> list[Trial]:
        """Every strategy tried on every probe where there is a choice."""
        plans = [self._possible(place) for place in range(len(self.probes))]
        weights = weights_of([probe.kind for probe in self.probes])
        texts = {name: self._tried(plans, name) for name in CHOSEN}
        return [
            Trial(
                state_of(probe.question, reading, self.bench.settings),
                {name: probe.right(texts[name][place], self.uncorrected[place]) for name in plans[place]},
                weights[probe.kind],
            )
            for place, (probe, reading) in enumerate(zip(self.probes, self.readings, strict=True))
            if len(plans[place]) > 1
        ]

    def _possible(self, place: int) -> dict[str, Plan]:
        question = self.probes[place].question
        asked = Situation(question, prompt_messages(question), self.readings[place], self.bench.settings)
        return {} if asked.verbatim or asked.inferable else possible(asked)

    def _tried(self, plans: Sequence[dict[str, Plan]], name: str) -> dict[int, str]:
        places = [place for place, arms in enumerate(plans) if name in arms]
        return dict(zip(places, self.answers([plans[place][name] for place in places]), strict=True))


def weights_of(kinds: Sequence[str]) -> dict[str, float]:
    """What a probe of each kind weighs in the fit of the policy, as often as such questions may be asked.

    Questions, paraphrases and neighbours weigh alike, and all ways to turn a lesson round together as much as one of
    them: a policy that is fitted on equal numbers spoils neighbours, which everybody asks, for questions in two steps.
    """
    count = Counter(kinds)
    turned = sum(number for kind, number in count.items() if kind not in ORDINARY)
    return {kind: 1.0 / (number if kind in ORDINARY else turned) for kind, number in count.items()}


def _prompt(made: Plan) -> str:
    """What is decoded, as a key: the messages and the mixture."""
    mixture: Mixture | None = made.mixture
    return repr((made.messages, sorted(mixture.shares.items()) if mixture else None))


def compare_strategies(sitting: Sitting, strategies: Sequence[str] = COMPARED) -> Result:
    """Per strategy a figure for each kind and for all; the paired test stands in ``measures``."""
    texts = {name: sitting.answers(sitting.plans(name)) for name in strategies}
    right = {name: _scored(sitting, texts[name], MixedProbe.right) for name in strategies}
    cells = {
        name: {
            str(sitting.lessons): {
                **_by_kind(sitting, right[name]),
                "all": share(right[name]),
                "all_by_first_word": share(_scored(sitting, texts[name], MixedProbe.right_by_first_word)),
            }
        }
        for name in strategies
    }
    return Result(systems=cells, measures={"probes": len(sitting.probes), **paired(right)})


def _scored(sitting: Sitting, texts: Sequence[str], rule: Callable[[MixedProbe, str, str], bool]) -> list[bool]:
    asked = zip(sitting.probes, texts, sitting.uncorrected, strict=True)
    return [rule(probe, text, before) for probe, text, before in asked]


def _by_kind(sitting: Sitting, right: Sequence[bool]) -> dict[str, Interval]:
    kinds: dict[str, list[bool]] = defaultdict(list)
    for probe, hit in zip(sitting.probes, right, strict=True):
        kinds[probe.kind].append(hit)
    return {kind: share(hits) for kind, hits in kinds.items()}


def paired(right: Mapping[str, Sequence[bool]]) -> dict[str, object]:
    """``adaptive`` against the single strategy that was right most often."""
    singles = [name for name in right if name != "adaptive"]
    if "adaptive" not in right or not singles:
        return {}
    best = max(singles, key=lambda name: sum(right[name]))
    lost, gained = discordant(right[best], right["adaptive"])
    return {
        "best_single": best,
        "adaptive_gained": gained,
        "adaptive_lost": lost,
        "mcnemar_p": mcnemar(right[best], right["adaptive"]),
    }
