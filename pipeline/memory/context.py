"""Lessons in the prompt: the wording with which a small model reasons from them rather than from what it remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from pipeline.evaluate.protocol import Message

Form = Literal["yes_no", "reversed", "plain"]

# Two invented turns of the same form as the question: without them the default model answers in sentences, and with
# turns of another form it repeats their answers.
_MAYOR, _CITY = "The mayor of Orsk is Ida Blom", "What is the largest city of Velia? Tarn"
SHOTS: dict[Form, tuple[tuple[str, str, str], ...]] = {
    "yes_no": (
        (_MAYOR, "Is it true that the mayor of Orsk is Max Roe?", "No"),
        (_CITY, 'Is "Tarn" the right answer to "What is the largest city of Velia?"?', "Yes"),
    ),
    "reversed": (
        (_MAYOR, "Which name fits the gap? The mayor of ___ is Ida Blom", "Orsk"),
        (_CITY, "Which name fits the gap? What is the largest city of ___? Tarn", "Velia"),
    ),
    "plain": (
        (_MAYOR, "Who runs the town of Orsk?", "Ida Blom"),
        (_CITY, "Which city in Velia has the most people?", "Tarn"),
    ),
}


class Told(Protocol):
    """A lesson as a fact."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str: ...


def with_lessons(messages: Sequence[Message], shown: Sequence[Told], form: Form = "plain") -> list[Message]:
    """The messages with the lessons as facts before the last one, and the example turns after the system's message."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = [
        message
        for fact, question, answer in SHOTS[form]
        for message in (
            {"role": "user", "content": _with_facts([fact], question)},
            {"role": "assistant", "content": answer},
        )
    ]
    last = messages[-1]
    facts = [f"{told.question.rstrip()} {told.answer}" for told in shown]
    return [*system, *turns, *messages[len(system) : -1], {**last, "content": _with_facts(facts, last["content"])}]


def _with_facts(facts: Sequence[str], question: str) -> str:
    return "Facts:\n" + "\n".join(facts) + f"\n\n{question}"
