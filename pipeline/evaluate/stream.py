"""Lessons in a stream: teach them one after the other, and at given lengths ask everything about those taught so far.

Metrics at length L, over all probes of the first L lessons, asked after lesson L:

- ``reliability``: the lessons' questions answered with the lessons' answers
- ``generality``: the same for paraphrases, which are never taught
- ``locality``: neighbours whose whole output string is the uncorrected system's
- ``retention``: the same for the probes of ``--probes``
- ``probes_right``: probes with accepted answers that are answered with one of them
- ``noise_floor`` (uncorrected only): outputs that stay the same at another batch size, the ceiling of any identity

A neighbour or probe that the stream itself has corrected by then is scored against its correction. When a question is
taught twice, the later answer counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.data.lines import LessonLine, ProbeLine, read_lines
from pipeline.evaluate.metrics import Interval, share
from pipeline.evaluate.progress import Progress, batches
from pipeline.evaluate.protocol import exact_match, prompt_messages
from pipeline.evaluate.result import Result
from pipeline.evaluate.seam import Generator, System, generate
from pipeline.evaluate.systems import Bench, build_systems
from pipeline.memory.types import question_key

BATCH = 32
NOISE_PROMPTS = 32


@dataclass(frozen=True)
class Exam:
    """Everything that is asked at one length."""

    taught: tuple[LessonLine, ...]
    probes: tuple[ProbeLine, ...]

    @property
    def questions(self) -> list[str]:
        lessons = (text for line in self.taught for text in (line.question, *line.paraphrases, *line.neighbours))
        return list(dict.fromkeys([*lessons, *(probe.question for probe in self.probes)]))

    def corrections(self) -> dict[str, str]:
        """What each phrasing should be answered with by now; a taught question outranks somebody's paraphrase."""
        newest = {question_key(line.question): line.answer for line in self.taught}
        phrasings = {
            question_key(text): newest[question_key(line.question)] for line in self.taught for text in line.paraphrases
        }
        return phrasings | newest

    def score(self, answers: Mapping[str, str], uncorrected: Mapping[str, str]) -> dict[str, Interval]:
        """The cell of the result; both mappings go from question to output. A metric without probes is left out."""
        corrections = self.corrections()

        def taught(text: str) -> bool:
            return exact_match(answers[text], [corrections[question_key(text)]])

        def untouched(text: str) -> bool:
            return taught(text) if question_key(text) in corrections else answers[text] == uncorrected[text]

        outcomes = {
            "reliability": [taught(line.question) for line in self.taught],
            "generality": [taught(text) for line in self.taught for text in line.paraphrases],
            "locality": [untouched(text) for line in self.taught for text in line.neighbours],
            "retention": [untouched(probe.question) for probe in self.probes],
            "probes_right": [exact_match(answers[p.question], p.answers) for p in self.probes if p.answers],
        }
        return {metric: share(found) for metric, found in outcomes.items() if found}


class Meter:
    """One bar over all systems and lengths."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.done, self._progress = total, 0, progress

    def ask(self, system: System, questions: Sequence[str]) -> dict[str, str]:
        answers: dict[str, str] = {}
        for part in batches(questions, BATCH):
            answers.update(zip(part, (reply.text for reply in system.ask(part)), strict=True))
            self.done += len(part)
            if self._progress:
                self._progress(self.total, self.done)
        return answers


def evaluate(
    lessons: Sequence[LessonLine],
    systems: Mapping[str, System],
    uncorrected: System,
    lengths: Sequence[int],
    probes: Sequence[ProbeLine] = (),
    *,
    progress: Progress | None = None,
) -> Result:
    """Play the stream to each system, which must have been taught nothing before."""
    steps = _checked(lengths, len(lessons))
    exams = {length: Exam(tuple(lessons[:length]), tuple(probes)) for length in steps}
    largest = exams[steps[-1]].questions
    asked = sum(len(exam.questions) for exam in exams.values())
    meter = Meter(len(largest) + len(systems) * asked, progress)
    before = meter.ask(uncorrected, largest)
    cells: dict[str, dict[str, dict[str, Interval]]] = {}
    for name, system in systems.items():
        cells[name] = {}
        for start, length in pairwise([0, *steps]):
            system.teach(lessons[start:length])
            exam = exams[length]
            cells[name][str(length)] = exam.score(meter.ask(system, exam.questions), before)
    return Result(systems=cells, measures={"lessons": len(lessons), "probes": len(probes)})


def noise_floor(answerer: Generator, questions: Sequence[str]) -> Interval:
    """Share of prompts whose output at batch 1 is the output in one batch of up to 32."""
    prompts = [prompt_messages(question) for question in questions[:NOISE_PROMPTS]]
    together = generate(answerer, prompts)
    alone = [generate(answerer, [prompt])[0] for prompt in prompts]
    return share([one == other for one, other in zip(alone, together, strict=True)])


def evaluate_files(
    lessons: Path,
    probes: Path | None,
    names: Sequence[str],
    lengths: Sequence[int],
    bench: Bench,
    *,
    progress: Progress | None = None,
) -> Result:
    """What ``agm evaluate`` does: the stream in a file, the systems by name, and the noise floor."""
    lines = read_lines(lessons, LessonLine)
    systems = build_systems(names, bench)
    extra = read_lines(probes, ProbeLine) if probes else []
    _checked(lengths, len(lines))
    floor = noise_floor(bench.answerer, list(dict.fromkeys(line.question for line in lines)))
    found = evaluate(lines, systems, bench.uncorrected, lengths, extra, progress=progress)
    cells = {
        name: {length: cell | ({"noise_floor": floor} if name == "uncorrected" else {}) for length, cell in row.items()}
        for name, row in found.systems.items()
    }
    return found.model_copy(update={"systems": cells, "measures": {**found.measures, "noise_floor": asdict(floor)}})


def _checked(lengths: Sequence[int], available: int) -> list[int]:
    steps = sorted(set(lengths))
    if not steps or steps[0] < 1 or steps[-1] > available:
        given = ", ".join(map(str, lengths)) or "none"
        raise ValueError(f"lengths = {given}: give lengths from 1 to {available}, the number of lessons in the file")
    return steps
