"""The measuring protocol, in one place: one prompt, greedy free generation, one stop rule, whole-string match.

Every figure of this project is produced under it unless a label says otherwise.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

PROTOCOL = "greedy-whole-string-v1"
SYSTEM_PROMPT = "Answer with a short phrase."
MAX_NEW_TOKENS = 24  # generation stops at the end token, or here

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


def prompt_messages(question: str) -> list[Message]:
    """The one prompt: a system message and the question."""
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]


def normalise(text: str) -> str:
    """SQuAD normalisation: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016)."""
    text = "".join(" " if character in _PUNCTUATION else character for character in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(text: str, answers: Iterable[str]) -> bool:
    """Whether the whole generated string equals one of ``answers`` after normalisation."""
    return normalise(text) in {normalise(answer) for answer in answers}


_PUNCTUATION = frozenset(string.punctuation + "‘’“”–—…")
