"""The parts of a question that the memory is read with: the whole, and each of its last sentences.

What stands before the question ("I was in Oslo last week. Who is the mayor?") blurs the encoder's mean. Measured
on 1,000 paraphrases of CounterFact among 6,000 lessons: the right lesson is among the first eight for .991 of the whole
texts, .993 of the last sentences, and 1.000 where each lesson counts by the nearer of the two.
"""

from __future__ import annotations

import re

SENTENCES = 3  # the last ones
FEWEST_WORDS = 3

# An initial does not end a sentence: "Kip S. Thorne" is one name.
_END = re.compile(r"(?<!\b[A-Z]\.)(?<=[.!?])[)\]\"'”’]*\s+|\n+")


def segments(question: str) -> tuple[str, ...]:
    """The question, then those of its last sentences that say something of their own."""
    parts = [part.strip() for part in _END.split(question) if part and len(part.split()) >= FEWEST_WORDS]
    return tuple(dict.fromkeys((question, *parts[-SENTENCES:])))
