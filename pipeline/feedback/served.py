"""Questions that people asked and agreed to have kept (``store``): what a cycle may replay, so that answers stay.

A uniform sample without a reservoir to carry along: the k questions whose seeded digests are smallest. Each of n
questions is in it with probability min(1, k/n) exactly, whatever was sampled before, so there is no state to save; and
of a longer log it takes the same ones, as far as no newcomer is smaller (bottom-k sampling, Cohen & Kaplan 2007).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from pipeline.feedback.records import Event
from pipeline.memory.types import Lesson, question_key

STORE = "store"  # the field of an answer's body that says so


def served(history: Iterable[Event], lessons: Iterable[Lesson], *, count: int, seed: int) -> tuple[int, ...]:
    """The ``seq`` of at most ``count`` answers whose questions may be replayed, in order.

    Not those that rested on a lesson, that somebody gave feedback on, or that a lesson answers in these words: there
    the answer is meant to change. A question that was asked twice counts once.
    """
    events = list(history)
    spoken = {event.response_id for event in events if event.kind == "feedback"}
    taught = {question_key(text) for lesson in lessons for text in lesson.phrasings}
    drawn: dict[str, tuple[str, int]] = {}
    for event in events:
        if _agreed(event) and not event.body["lessons"] and event.response_id not in spoken:
            key = question_key(event.body["question"])
            if key not in taught:
                drawn.setdefault(key, (sha256(f"{seed}/{key}".encode()).hexdigest(), event.seq))
    return tuple(sorted(seq for _, seq in sorted(drawn.values())[:count]))


def _agreed(event: Event) -> bool:
    """Whether it is the answer to one question by itself, asked with ``store``."""
    return event.kind == "answer" and bool(event.body.get(STORE)) and len(event.body["messages"]) == 1
