"""Which known lesson a lesson is about that is taught in other words.

A lesson's identity is its question's words, so a second correction under other words would stand beside the first,
which would go on answering its own wording with what is outdated. But one that takes another fact's lesson for its
own would destroy what was right. So the router's word alone is not enough; either of these has to say it, too:

- the words were taught as a phrasing of that lesson, or
- the line says what it replaces (``previous``), and that lesson is believed to answer just this.

Among 1,000 CounterFact lessons taught one after the other, the router alone would have merged 4 that ask different
things, and 5 of the example stream's 223.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.lines import LessonLine
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Lesson, Viewer, question_key

LIKELY = 0.65  # the weight from which the lesson's answer is given for the question


@dataclass(frozen=True)
class Overlap:
    """The lesson that so far answers a question which is now taught in other words; ``replaced``: it is that lesson."""

    lesson: Lesson
    replaced: bool


def overlap(memory: LessonMemory, line: LessonLine, tenant: str = "default") -> Overlap | None:
    """What a line for everybody shares with a lesson for everybody; ``None`` where its words are known or new."""
    if line.scope in ("session", "user"):
        return None
    (reading,) = memory.read([line.question], [Viewer(tenant)])
    if not reading.slots or reading.slots[0].weight <= LIKELY:
        return None
    lesson = memory.get(reading.slots[0].lesson_id)
    asked = question_key(line.question)
    if lesson is None or lesson.private or question_key(lesson.question) == asked:
        return None
    told = asked in map(question_key, lesson.paraphrases)
    outdated = line.previous is not None and question_key(line.previous) == question_key(lesson.answer)
    return Overlap(lesson, replaced=told or outdated)
