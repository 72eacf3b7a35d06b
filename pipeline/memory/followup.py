"""A question that leans on the one before it, completed by that one: "And of France?" becomes a question of its own.

Lessons are questions of their own, and so is what the router was trained on. Two shapes are completed, both English:
a fragment that names another subject or property for the question before ("And Bulgaria?", "And its currency?"), and a
pronoun for what was asked about or answered ("When was it built?"). Whatever names its own subject is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.evaluate.protocol import Message

TURNS = 8  # messages that are looked back at
MOST_WORDS, MOST_CHARS = 12, 200  # a longer message says itself what it is about
LONGEST_BEFORE = 300  # characters of a question that another one leans on
MOST_NAMED = 6  # words of another subject
MOST_OWNED = 3  # words of another property
MOST_ANSWERED = 5  # words of an answer that is a name

_ASKING = (
    "who|whose|whom|what|which|when|where|why|how|is|are|was|were|do|does|did|has|have|had|can|could|will|would|should"
)
_PREPOSITION = "of|in|for|from|to|at|on|by|with|during|after|before|under|around|near"
_PERSON, _OWNER = "he|she|him|his|her|hers", "its|their|his|her"
_ANY = re.IGNORECASE

_OPENING = re.compile(r"^(?:(?:and|but|or|so|ok|okay|then|now)\b[\s,]*)?(?:(?:what|how)\s+about\s+)?", _ANY)
_ASKS = re.compile(rf"^(?:(?:{_PREPOSITION})\s+)?(?:{_ASKING})\b", _ANY)
_ASKED = re.compile(rf"^\s*(?:(?:{_PREPOSITION})\s+)?(?:{_ASKING}|tell|name|give|say|list|please)\b", _ANY)
_FIRST = re.compile(rf"^(?:{_ASKING}|{_PREPOSITION}|the|an?|tell|name|give|say|please|i|if|and|but|so)\b", _ANY)

_CAPITAL = r"[^\W\d_a-z][\w./-]*(?:['’](?!s\b)\w+)*"
_LINK = r"(?:,? | (?:of|de|la|du|da|von|van|and|al)(?: the)? |[-–])"
_NAME = re.compile(rf"\b{_CAPITAL}(?:{_LINK}(?:{_CAPITAL}|\d[\w.]*))*(?<!\.)")
_PHRASE = re.compile(rf"^(?P<word>{_PREPOSITION})\s+(?P<rest>.+)$", _ANY)
_PROPERTY = re.compile(rf"^(?:the|{_OWNER})\s+(?P<rest>[a-z][^A-Z]*)$")
_OF = re.compile(r"\bthe [^,?]*? of (?=(?:the )?[^\W\d_a-z])")
_TAIL = re.compile(rf"\b(?:{_PREPOSITION})\s+(?!.*\b(?:{_PREPOSITION})\s)(?P<tail>[^?]+)", _ANY)

# A pronoun leans on an earlier turn where its own sentence cannot hold what it stands for. Names may be written small:
# so the question is short and one clause, with little behind the pronoun, and an owner stands at its beginning ("How
# does gold keep its value?" says itself whose). "They" is mostly people in general.
_PRONOUN = re.compile(r"\b(?:it|its|he|him|his|she|her|hers|they|them|their)\b", _ANY)
_LEANS = re.compile(
    rf"^(?:(?:what|who)'s\s+|(?:(?:{_PREPOSITION})\s+)?(?:{_ASKING})\s+)(?:(?!\b(?:and|or|but|if|when|while|because|"
    r"that|which|who|whose|where|before|after|you|i|my)\b)[\w'’]+\s+){0,5}(?P<it>it|its|he|him|his|she|her)"
    rf"(?:\s+(?!(?:{_PREPOSITION}|to|that|if|when|is|was)\s)[\w'’]+){{0,3}}\s*\??$",
    _ANY,
)
_OWNED = re.compile(rf"^(?:(?:(?:{_ASKING}|{_PREPOSITION}|what's|who's)|how \w+)\s+)+(?:{_OWNER})\s", _ANY)
_NOBODY = re.compile(
    r"\b(?:time|day|date|year|month) is it\b|"
    r"\bit (?:true|ok|okay|safe|legal|possible|\w*rain\w*|\w*snow\w*|takes?|means?)\b",
    _ANY,
)


def readings(messages: Sequence[Message]) -> tuple[str, ...]:
    """What the memory is read with for the last message, the likeliest first: that alone where it leans on nothing.

    A fragment is read completed; a question with a pronoun is read completed and, in case it was none, as it stands.
    """
    before, answer = "", ""
    found: tuple[str, ...] = ("",)
    for message in messages[-TURNS:]:
        if message["role"] == "assistant":
            answer = message["content"]
        elif message["role"] == "user":
            text = message["content"]
            leaning = _is_question(before) and len(text) <= MOST_CHARS
            found = (_completed(" ".join(text.split()), before, answer) if leaning else ()) or (text,)
            before, answer = found[0], ""
    return found


def _is_question(text: str) -> bool:
    return 0 < len(text) <= LONGEST_BEFORE and (text.rstrip().endswith("?") or bool(_ASKED.match(text)))


def _completed(text: str, before: str, answer: str) -> tuple[str, ...]:
    if len(text.split()) > MOST_WORDS:
        return ()
    rest = _OPENING.sub("", text)
    if rest != text and not _ASKS.match(rest):
        made = _with_another(rest.rstrip(" ?.!"), before.rstrip())
        return (made,) if made else ()
    if _names(rest) or not _leans(rest):
        return ()
    made_by = [_with_name(rest, name) for name in _antecedents(rest, before, answer)]
    return (*made_by, text) if made_by else ()


# fragments


def _with_another(said: str, before: str) -> str | None:
    """The question before with another subject, place or property; ``None`` where there is no place for it.

    A name takes the place of a name, anything else that of anything else: "And in the nineties?" after "What is the
    currency of Croatia?" asks what no lesson of today answers.
    """
    if not said or len(said.split()) > MOST_NAMED:
        return None
    if (asked := _PROPERTY.match(said)) and (made := _with_property(asked["rest"], before)) is not None:
        return made
    phrase = _PHRASE.match(said)
    said_name, names = _bare(phrase["rest"] if phrase else said), _name_spans(before)
    named = _names(said_name) == [said_name]
    if _PRONOUN.search(said) or (_names(said) and not named):
        return None
    if phrase and (same := _same_phrase(phrase["word"], named, before)):
        return _put(said, same, before)
    if named and names:
        return _put(said_name, names[-1], before)
    if phrase:
        return f"{before.rstrip(' ?.!')} {said}?" if named else None
    tail = None if names else _TAIL.search(before)
    return _put(said, tail.span("tail"), before) if tail else None


def _with_property(asked: str, before: str) -> str | None:
    """From "the capital of Spain" and "its currency": the currency of Spain."""
    words = asked.split()
    names = _names(before)
    if not names or len(words) > MOST_OWNED or any(re.fullmatch(_PREPOSITION, word) for word in words):
        return None
    if found := list(_OF.finditer(before)):
        return _put(f"the {asked} of ", found[-1].span(), before)
    return f"What is the {asked} of {names[-1]}?"


def _same_phrase(word: str, named: bool, before: str) -> tuple[int, int] | None:
    """The last phrase that begins with the same preposition: with a name in it, or without one."""
    whole = rf"(?:the\s+)?{_NAME.pattern}" if named and _names(before) else r"[^?]+"
    found = list(re.finditer(rf"\b{word.lower()}\s+{whole}", before))
    return found[-1].span() if found and (named or not _names(found[-1][0])) else None


def _bare(said: str) -> str:
    return re.sub(r"^the\s+|['’]s?$", "", said)


# pronouns


def _leans(text: str) -> bool:
    found = _LEANS.match(text)
    if found is None or len(_PRONOUN.findall(text)) > 1 or _NOBODY.search(text):
        return False
    return not re.match(rf"(?:{_OWNER})\s\w", text[found.start("it") :], _ANY) or bool(_OWNED.match(text))


def _antecedents(text: str, before: str, answer: str) -> list[str]:
    """What a pronoun can stand for: the name asked about and the name answered; for a person the latter comes first."""
    name = answer[:MOST_CHARS].strip().rstrip(".!")
    short = len(name.split()) <= MOST_ANSWERED and name.lower() not in ("yes", "no")
    answered = [name] if short and _names(name) == [name] else []
    asked = _names(before)[-1:]
    return answered + asked if re.search(rf"\b(?:{_PERSON})\b", text, _ANY) else asked + answered


def _with_name(text: str, name: str) -> str:
    def put(found: re.Match[str]) -> str:
        owning = re.fullmatch(_OWNER, found[0], _ANY) and re.match(r"\s+\w", text[found.end() :])
        return f"{name}'s" if owning else name

    made = _PRONOUN.sub(put, text)
    return made[0].upper() + made[1:]


# names


def _names(text: str) -> list[str]:
    return [text[begin:end] for begin, end in _name_spans(text)]


def _name_spans(text: str) -> list[tuple[int, int]]:
    """Where capitals stand, but for the one that a sentence begins with."""
    first = _FIRST.match(text)
    return [found.span() for found in _NAME.finditer(text, first.end() if first else 0)]


def _put(new: str, span: tuple[int, int], text: str) -> str:
    return text[: span[0]] + new + text[span[1] :]
