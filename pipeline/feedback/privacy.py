"""What must not reach the disk: e-mail addresses, phone, card and account numbers, postal addresses, listed names.

Candidates are found by pattern, and what has check digits or a numbering plan is checked: phone numbers by
``phonenumbers``, card and account numbers by ``python-stdnum``. Both work without a network. Names are redacted only
where a policy lists them, because the answers that this product keeps often are names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, get_args

import phonenumbers
from stdnum import iban, luhn
from stdnum.us import ssn

from pipeline.config import FeedbackSettings

Kind = Literal["email", "phone", "card", "account", "address", "name"]
Span = tuple[int, int]
Finder = Callable[[str], Iterator[Span]]

DEFAULT: tuple[Kind, ...] = ("email", "account", "card", "phone", "address")
REGIONS = ("US", "GB", "DE", "FR")  # numbering plans tried for a number that is written without its country
# Identifiers and fixed words, not anybody's text.
_NOT_TEXT = {"op", "kind", "lesson_id", "request_id", "strategy", "date", "weight", "scope", "feedback_id"}

# Most texts have fewer, so that these patterns, which are most of the cost, need not be tried.
_FEWEST_DIGITS: dict[Kind, int] = {"account": 2, "card": 13, "phone": 7, "address": 1}
_DIGIT = re.compile(r"\d")

_EMAIL = re.compile(r"[\w.+%'-]+@[\w-]+(?:\.[\w-]+)+")
_LONG_NUMBER = re.compile(r"(?<![\w.,+-])\d(?:[ -]?\d){12,18}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){3,8}\b")
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
_NAMED_ACCOUNT = re.compile(
    r"\b(?:account|acct|a/c|konto|compte|cuenta|routing|sort code)\b(?:[ .-]*(?:number|num|no|nr|n°|nummer|#))?"
    r"[ .:#]*(?:is|ist|est|es|=)?[ :]*(\d(?:[ -]?\d){5,17})\b",
    re.IGNORECASE,
)
_SIX_DIGITS = re.compile(r"(?:\d[ -]?){6}")
_PHONE_LIKE = re.compile(r"(?:\d[\s().\-/]*){7}")

_DECIMAL = re.compile(r"[^\d]*\d+[.,]\d+")  # 6.02214076 is no phone number

_CAPITAL = r"[A-ZÀ-ÖØ-Þ][\w'’-]*\.?"
_UNIT = r"(?:,? (?:[Aa]pt|[Aa]partment|[Ss]uite|[Uu]nit|[Ff]lat|[Ff]loor|#)\.? ?\w+)?"
_ZIP = r"(?: [A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}\b| \d{5}(?:-\d{4})?\b)?"
_TOWN = rf"(?:, (?:{_CAPITAL} ?){{1,3}}(?:,? [A-Z]{{2}})?,?{_ZIP})?"
_STREETS = (
    "Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Square|Sq|Place|Pl|Terrace|Way|Parkway|Pkwy|"
    "Highway|Hwy|Close|Crescent"
)
_STRASSEN = "[Ss]traße|[Ss]trasse|[Ss]tr\\.|[Ww]eg|[Pp]latz|[Aa]llee|gasse|[Dd]amm|[Uu]fer"
_RUES = "[Rr]ue|[Aa]venue|[Bb]oulevard|[Pp]lace|[Cc]hemin|[Qq]uai|[Aa]llée|[Ii]mpasse|[Cc]ours"
_CALLES = "Calle|Avenida|Plaza|Paseo|Via|Viale|Piazza|Corso|Rua|Travessa"
_ADDRESSES = [
    re.compile(pattern)
    for pattern in (
        rf"(?<![\w–-])\d{{1,5}}[A-Za-z]? (?:(?:{_CAPITAL}|\d{{1,3}}(?:st|nd|rd|th)) ){{1,4}}(?:{_STREETS})\b\.?"
        rf"{_UNIT}{_TOWN}",
        r"(?<![\w–-])\d{1,5}[a-z]? (?:[a-z]+ ){1,3}(?:street|avenue|road|boulevard|lane)\b",
        rf"\b(?!Bundes|Landes|Reichs)[A-ZÄÖÜ][\wäöüß.-]*[ -]?(?:{_STRASSEN}) \d{{1,4}}(?: ?[a-z]\b)?"
        r"(?:,? \d{5} [A-ZÄÖÜ][\wäöüß-]+)?(?!\w)",
        rf"\b\d{{1,4}}(?: ?(?:bis|ter))?,? (?:{_RUES}) (?:de la |de l['’]|d[eu]s? |d['’])?{_CAPITAL}"
        rf"(?:[ -]{_CAPITAL}){{0,3}}(?:,? \d{{5}} {_CAPITAL})?",
        rf"\b(?:{_CALLES}) (?:d[aeio]s? |del |della )?{_CAPITAL}(?: {_CAPITAL}){{0,3}},? (?:n[.º°]* ?)?\d{{1,4}}\b"
        rf"(?:,? \d{{4,5}}(?:-\d{{3}})? {_CAPITAL})?",
        r"\b[Pp]\.? ?[Oo]\.? [Bb]ox \d+\b",
    )
]


class Redactor:
    """Replaces what it finds by its kind: ``[EMAIL]``, ``[PHONE]``, ..."""

    def __init__(self, kinds: Collection[Kind] = DEFAULT, names: Sequence[str] = ()) -> None:
        if unknown := set(kinds) - set(get_args(Kind)):
            raise ValueError(f"redact = {min(unknown)!r}: use some of {', '.join(get_args(Kind))}")
        self.kinds = tuple(kind for kind in (*DEFAULT, "name") if kind in kinds or (kind == "name" and names))
        self._names = (
            re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names), re.IGNORECASE) if names else None
        )

    @classmethod
    def of(cls, settings: FeedbackSettings) -> Redactor:
        """The policy of a recipe."""
        return cls(settings.redact, settings.redact_names)

    def text(self, text: str) -> str:
        digits = len(_DIGIT.findall(text))  # replacing takes some away and never adds one
        for kind in self.kinds:
            if digits < _FEWEST_DIGITS.get(kind, 0):
                continue
            spans = list(self.find(kind, text))
            for start, end in reversed(spans):
                text = f"{text[:start]}[{kind.upper()}]{text[end:]}"
        return text

    def find(self, kind: Kind, text: str) -> Iterator[Span]:
        """Where ``kind`` stands in ``text``, in order and without overlaps."""
        if kind == "name":
            return (match.span() for match in self._names.finditer(text)) if self._names else iter(())
        return FINDERS[kind](text)

    def body(self, body: dict[str, Any]) -> dict[str, Any]:
        """A copy of an event's body whose texts are redacted; identifiers stay as they are."""
        # One text often stands there twice, as a message and as the question.
        return _fields(body, _NOT_TEXT, functools.cache(self.text))


def _fields(told: dict[str, Any], kept: Collection[str], redact: Callable[[str], str]) -> dict[str, Any]:
    """``line`` holds whatever fields a lesson line came with: there no name means an identifier."""
    return {
        name: value if name in kept else _value(value, () if name == "line" else kept, redact)
        for name, value in told.items()
    }


def _value(value: Any, kept: Collection[str], redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return _fields(value, kept, redact)
    if isinstance(value, list | tuple):
        return [_value(item, kept, redact) for item in value]
    return value


def _emails(text: str) -> Iterator[Span]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


def _accounts(text: str) -> Iterator[Span]:
    spans = [match.span() for match in _IBAN.finditer(text) if iban.is_valid(match.group())]
    if _SIX_DIGITS.search(text):
        spans += [match.span() for match in _SSN.finditer(text) if ssn.is_valid(match.group())]
        spans += [match.span(1) for match in _NAMED_ACCOUNT.finditer(text)]
    yield from _apart(spans)


def _cards(text: str) -> Iterator[Span]:
    """Numbers of 13 to 19 digits that begin like an issuer's (2 to 6) and whose check digit is right."""
    for match in _LONG_NUMBER.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if digits[0] in "23456" and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield match.span()


def _phones(text: str) -> Iterator[Span]:
    if not _PHONE_LIKE.search(text):
        return
    spans: list[Span] = []
    for region in REGIONS:
        found = phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.VALID)
        spans += [(m.start, m.end) for m in found if not _DECIMAL.fullmatch(text[: m.end].rsplit(maxsplit=1)[-1])]
    yield from _apart(spans)


def _addresses(text: str) -> Iterator[Span]:
    yield from _apart([match.span() for pattern in _ADDRESSES for match in pattern.finditer(text)])


def _apart(spans: list[Span]) -> Iterator[Span]:
    """Overlapping spans: the one that begins first, the longer of two that begin together."""
    end = 0
    for span in sorted(spans, key=lambda span: (span[0], -span[1])):
        if span[0] >= end:
            yield span
            end = span[1]


FINDERS: dict[Kind, Finder] = {
    "email": _emails,
    "account": _accounts,
    "card": _cards,
    "phone": _phones,
    "address": _addresses,
}
