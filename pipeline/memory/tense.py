"""Whether a question asks how it was before what a lesson says: "What was Croatia's currency before 2023?" (English).

The router reads what a question is about, and such a question is about the lesson's very subject and relation. A lesson
replaces what was so before, and does not know it.
"""

from __future__ import annotations

import re

_PAST = re.compile(r"\b(?:was|were|did|had|used to)\b", re.IGNORECASE)
# "the former Artemivsk" only names a thing, and "until when" asks for a date.
_EARLIER = re.compile(
    r"\b(?:before|until(?! when)|till|prior to|previous(?:ly)?|preced\w+|predecessors?|"
    r"former(?:ly)?(?!\s(?-i:[A-Z])))\b",
    re.IGNORECASE,
)
_BEFORE_A_YEAR = re.compile(
    r"\b(?:before|until|till|prior to|up to)\b(?:\s\w+){0,3}\s(?:1\d{3}|20\d{2})\b", re.IGNORECASE
)
_SENTENCE = re.compile(r"(?<=[.?!])\s+")


def asks_earlier(question: str, lesson: str) -> bool:
    """Whether ``question`` asks about a time before that of a lesson, given by its own question."""
    asked = _SENTENCE.split(question.strip())[-1]
    return not _speaks_of_the_past(lesson) and bool(
        _BEFORE_A_YEAR.search(asked) or (_PAST.search(asked) and _EARLIER.search(asked))
    )


def _speaks_of_the_past(text: str) -> bool:
    return bool(_PAST.search(text) or _EARLIER.search(text))
