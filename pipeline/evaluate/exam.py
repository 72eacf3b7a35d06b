"""What is asked at one length of a stream, and how a reply is judged.

Figures over the first L lessons, asked after lesson L:

- ``reliability``: lessons' questions answered with their answers
- ``generality``: the same for paraphrases, which are never taught
- ``locality``: neighbours whose whole output string is the uncorrected system's
- ``locality_as_written``: an extra, ``locality`` where only a lesson's own wordings count as corrected
- ``locality_first_token``: an extra, the first token of the same strings alone; never a substitute for ``locality``
- ``retention_first``: the first 100 lessons, still answered right
- ``abstention``: neighbours (and generated near misses) at which memory stayed silent
- ``retention``: as ``locality``, for the probes of ``--probes``
- ``probes_right``: probes with accepted answers that are answered with one of them

A neighbour or probe that the stream itself has corrected by then is judged by its correction: in a lesson's wording or
a paraphrase of it, or, for neighbours, in other words (``same_fact.py``). When a question is taught twice, the later
answer counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from pipeline.data.lines import LessonLine, ProbeLine
from pipeline.evaluate.metrics import Interval, share
from pipeline.evaluate.protocol import exact_match
from pipeline.evaluate.same_fact import corrected_neighbours
from pipeline.evaluate.seam import Reply
from pipeline.memory.types import question_key

if TYPE_CHECKING:
    from pipeline.evaluate.harder import Workshop

FIRST = 100  # lessons that ``retention_first`` follows

Rule = Literal["answered", "unchanged", "first_token", "silent"]
FirstToken = Callable[[str], str]


@dataclass(frozen=True)
class Asked:
    """One question and what makes its reply right. ``item`` is the same in every shuffle, so that outcomes pair up."""

    metric: str
    item: str
    question: str
    rule: Rule
    answers: tuple[str, ...] = ()

    @property
    def compared(self) -> bool:
        """Whether the reply is held against the uncorrected system's."""
        return self.rule in ("unchanged", "first_token")

    def right(self, reply: Reply, before: str, first_token: FirstToken) -> bool | None:
        """``None`` where the system has no notion of what is asked."""
        if self.compared and reply.text is None:
            return True  # left to the uncorrected system
        match self.rule:
            case "answered":
                return exact_match(reply.text or "", self.answers)
            case "unchanged":
                return reply.text == before
            case "first_token":
                return first_token(reply.text or "") == first_token(before)
            case "silent":
                return None if reply.from_memory is None else not reply.from_memory


def first_word(text: str) -> str:
    """The first token where no tokenizer is at hand."""
    return text.split(maxsplit=1)[0] if text.strip() else ""


@dataclass(frozen=True)
class Exam:
    """Everything that is asked at one length, with the harder questions that a ``workshop`` makes.

    ``numbers`` are the lessons' places in the file.
    """

    taught: tuple[LessonLine, ...]
    probes: tuple[ProbeLine, ...] = ()
    numbers: tuple[int, ...] = ()
    workshop: Workshop | None = None

    @property
    def questions(self) -> list[str]:
        return list(dict.fromkeys(asked.question for asked in self.asked()))

    def corrections(self) -> dict[str, str]:
        """What each phrasing and each corrected neighbour should be answered with by now."""
        return self._corrected_neighbours | self.phrasings()

    @cached_property
    def _corrected_neighbours(self) -> dict[str, str]:
        return corrected_neighbours(self.taught)

    def phrasings(self) -> dict[str, str]:
        """The same for lessons' own wordings; a taught question outranks somebody's paraphrase."""
        newest = {question_key(line.question): line.answer for line in self.taught}
        phrasings = {
            question_key(text): newest[question_key(line.question)] for line in self.taught for text in line.paraphrases
        }
        return phrasings | newest

    def asked(self) -> Iterator[Asked]:
        phrasings, corrections = self.phrasings(), self.corrections()
        numbers = self.numbers or range(len(self.taught))
        for place, (number, line) in enumerate(zip(numbers, self.taught, strict=True)):
            answers = (corrections[question_key(line.question)],)
            yield Asked("reliability", f"{number}", line.question, "answered", answers)
            if place < FIRST:
                yield Asked("retention_first", f"{number}", line.question, "answered", answers)
            for k, text in enumerate(line.paraphrases):
                yield Asked("generality", f"{number}.{k}", text, "answered", (corrections[question_key(text)],))
            for k, text in enumerate(line.neighbours):
                yield from _left_alone(f"{number}.{k}", text, corrections)
                yield untouched("locality_as_written", f"{number}.{k}", text, phrasings)
        for number, probe in enumerate(self.probes):
            yield untouched("retention", f"{number}", probe.question, corrections)
            if probe.answers:
                yield Asked("probes_right", f"{number}", probe.question, "answered", probe.answers)
        if self.workshop:
            yield from self.workshop.asked(numbers, corrections)

    def score(self, answers: Mapping[str, str], uncorrected: Mapping[str, str]) -> dict[str, Interval]:
        """Figures of bare strings by question; a metric without probes is left out."""
        replies = {question: Reply(text, None) for question, text in answers.items()}
        found = judge(self.asked(), replies, uncorrected)
        return {metric: share([right for _, right in outcomes]) for metric, outcomes in found.items()}


Outcomes = dict[str, list[tuple[str, bool]]]  # metric -> (item, right)


def judge(
    asked: Iterable[Asked],
    replies: Mapping[str, Reply],
    uncorrected: Mapping[str, str],
    first_token: FirstToken = first_word,
) -> Outcomes:
    """Outcomes by metric; both mappings go from question to what was said."""
    outcomes: Outcomes = {}
    for each in asked:
        right = each.right(replies[each.question], uncorrected.get(each.question, ""), first_token)
        if right is not None:
            outcomes.setdefault(each.metric, []).append((each.item, right))
    return outcomes


def untouched(metric: str, item: str, question: str, corrections: Mapping[str, str]) -> Asked:
    """The output is to stay, or to be the correction where the stream has corrected this very question."""
    correction = corrections.get(question_key(question))
    if correction is None:
        return Asked(metric, item, question, "unchanged")
    return Asked(metric, item, question, "answered", (correction,))


def _left_alone(item: str, question: str, corrections: Mapping[str, str]) -> Iterator[Asked]:
    yield untouched("locality", item, question, corrections)
    if question_key(question) not in corrections:
        yield Asked("locality_first_token", item, question, "first_token")
        yield Asked("abstention", item, question, "silent")


def in_scope(asked: Sequence[Asked]) -> list[Asked]:
    """Questions that a lesson answers, out of all that were asked."""
    return [each for each in asked if each.rule == "answered" and each.metric in ("reliability", "generality")]
