"""Lessons in the prompt: the wording with which a small model reasons from them rather than from what it remembers."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evaluate.protocol import Message
from pipeline.memory.types import SlotWeight

# Three invented turns: without them the default model answers in sentences, and neither yes nor no.
SHOTS: tuple[tuple[str, str], ...] = (
    ("Facts:\nThe mayor of Orsk is Ida Blom\n\nIs it true that the mayor of Orsk is Max Roe?", "No"),
    ("Is the mayor of Orsk Ida Blom?", "Yes"),
    ("Which name fits the gap? The mayor of ___ is Ida Blom", "Orsk"),
)


def with_lessons(messages: Sequence[Message], shown: Sequence[SlotWeight]) -> list[Message]:
    """The messages with the lessons as facts before the last one, and the example turns after the system's message."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = [
        {"role": role, "content": content}
        for shot in SHOTS
        for role, content in zip(("user", "assistant"), shot, strict=True)
    ]
    last = messages[-1]
    facts = "\n".join(f"{slot.question.rstrip()} {slot.answer}" for slot in shown)
    asked = {**last, "content": f"Facts:\n{facts}\n\n{last['content']}"}
    return [*system, *turns, *messages[len(system) : -1], asked]
