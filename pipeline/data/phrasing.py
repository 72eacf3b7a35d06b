"""The wordings of a lesson: those that are trained, and those that are held back to measure whether it generalised."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Protocol

from pipeline.evaluate.protocol import normalise

TRAINING_TEMPLATES = (
    "{question}",
    "Question: {question}",
    "I would like to know: {lowered}",
    "{question} Answer briefly.",
    "Here is something to answer. {question}",
)
WITHHELD_TEMPLATES = (
    "Could you tell me this: {question}",
    "A friend asked me: {lowered} What should I say?",
)

# A question that begins with one of these loses nothing when its first letter is lowered; a name would.
_QUESTION_WORDS = ("what", "which", "who", "whom", "whose", "when", "where", "why", "how")
_VERBS = ("is", "are", "was", "were", "do", "does", "did", "has", "have", "can", "could", "name", "tell")
_SMALL_WORDS = ("in", "on", "at", "by", "from", "for", "to", "of", "since", "as", "the", "a", "an", "under", "after")
_OPENERS = frozenset((*_QUESTION_WORDS, *_VERBS, *_SMALL_WORDS))


class Phrased(Protocol):
    """Anything with a question and its paraphrases: a lesson line, or a lesson of the memory."""

    @property
    def question(self) -> str: ...

    @property
    def paraphrases(self) -> tuple[str, ...]: ...


def phrasings(line: Phrased, templates: int = len(TRAINING_TEMPLATES)) -> tuple[list[str], list[str]]:
    """(trained, withheld): disjoint after normalisation, and neither of them empty.

    Trained are the first ``templates`` study wordings, of which the first is the question itself, and what was posted.
    The last posted paraphrase is withheld; a lesson without a paraphrase of its own withholds a template instead.
    """
    posted = _distinct(line.paraphrases, without=[line.question])
    augmented = [render(template, line.question) for template in TRAINING_TEMPLATES]
    usable = _distinct(posted, without=augmented)
    withheld = usable[-1:] or [render(_withheld_template(line.question), line.question)]
    return _distinct([*augmented[:templates], *posted], without=withheld), withheld


def render(template: str, question: str) -> str:
    return template.format(question=question, lowered=lowered(question))


def lowered(question: str) -> str:
    """The question as it reads inside a sentence: its first letter lowered, unless it may belong to a name."""
    first = question.split(maxsplit=1)[0] if question.strip() else ""
    return question[:1].lower() + question[1:] if first.lower() in _OPENERS and not first[1:].isupper() else question


def _withheld_template(question: str) -> str:
    return WITHHELD_TEMPLATES[sha256(question.encode("utf-8", "surrogatepass")).digest()[0] % len(WITHHELD_TEMPLATES)]


def _distinct(texts: Iterable[str], *, without: Iterable[str]) -> list[str]:
    """``texts`` in order, each wording once, less those that ``without`` names in the same words."""
    seen = {normalise(text) for text in without}
    kept = []
    for text in texts:
        if normalise(text) not in seen:
            seen.add(normalise(text))
            kept.append(text)
    return kept
