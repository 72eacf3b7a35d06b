"""Text helpers shared by the checks: folding to comparable words."""

from __future__ import annotations

import re
import unicodedata

FUNCTION_WORDS = """
a an and any are as at be by can did do does for from had has have how i if in into is it its many much
no not now of on one or s so that the their there they this to today was were what when where which who
whom whose will with would you your
"""
STOP = frozenset(FUNCTION_WORDS.split())


def fold(text: str) -> str:
    """Lower case, no accents, no punctuation except the signs that belong to a number."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    plain = re.sub(r"(?<![\d^a-z])-|-(?![\d])|(?<!\d)\.|\.(?!\d)", " ", plain.casefold().replace("'", ""))
    return " ".join(re.sub(r"[^a-z0-9+\-.^]", " ", plain).split())


def content_words(text: str, subject: str) -> set[str]:
    """The words of a text that are neither function words nor words of the subject."""
    return set(fold(text).split()) - STOP - set(fold(subject).split())


def contains(text: str, phrase: str) -> bool:
    """Whether the phrase occurs in the text as whole words."""
    return f" {fold(phrase)} " in f" {fold(text)} "
