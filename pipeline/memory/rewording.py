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
from pipeline.memory.types import Lesson, Reading, Viewer, question_key

# The weight beside the null slot from which a lesson counts. It is no recipe's gate: one that is lowered for answering
# must not make overwriting laxer.
LIKELY = 0.65


@dataclass(frozen=True)
class Overlap:
    """A lesson that so far answers a question which is now taught in other words; ``replaced``: it is the same fact."""

    lesson: Lesson
    replaced: bool


def overlap(memory: LessonMemory, line: LessonLine, tenant: str = "default") -> Overlap | None:
    """What a line for everybody shares with a lesson for everybody: the one that it replaces, else one that disagrees.

    ``None`` where its words are a lesson's own question, and where no lesson answers it otherwise.
    """
    if line.scope in ("session", "user"):
        return None
    (reading,) = memory.read([line.question], [Viewer(tenant)])
    asked = question_key(line.question)
    known = [lesson for lesson in _likely(memory, reading) if not lesson.private]
    if any(question_key(lesson.question) == asked for lesson in known):
        return None
    for lesson in known:
        told = asked in map(question_key, lesson.paraphrases)
        outdated = line.previous is not None and question_key(line.previous) == question_key(lesson.answer)
        if told or outdated:
            return Overlap(lesson, replaced=True)
    others = (lesson for lesson in known if question_key(lesson.answer) != question_key(line.answer))
    return next((Overlap(lesson, replaced=False) for lesson in others), None)


def _likely(memory: LessonMemory, reading: Reading) -> list[Lesson]:
    """The lessons that would answer the question if they were alone beside the null slot, the likeliest first."""
    slots = [slot for slot in reading.slots if slot.weight > LIKELY * (slot.weight + reading.null_weight)]
    found = (memory.get(slot.lesson_id) for slot in slots)
    return [lesson for lesson in found if lesson is not None]
