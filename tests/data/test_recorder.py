"""What is written in one group fails alone where what it rests on cannot be read any more."""

from __future__ import annotations

import asyncio
from functools import partial

from sqlalchemy import select, update

from pipeline.data.lines import LessonLine
from pipeline.feedback.curation import Curator
from pipeline.feedback.database import write_transaction
from pipeline.feedback.events import EventLog
from pipeline.feedback.intake import Receipt, amend_lesson, record_lesson
from pipeline.feedback.keys import Key
from pipeline.feedback.tables import events
from pipeline.feedback.vault import KeyUnavailable
from serve.recorder import Recorder

TEACHER = Key("tim", "teach")


def test_a_damaged_lesson_fails_nobody_else_in_its_group(log: EventLog) -> None:
    damaged, sound = (
        str(record_lesson(log, LessonLine(question=f"Who rules {place}?", answer="x"), key=TEACHER).lesson_id)
        for place in ("Oz", "Narnia")
    )
    with write_transaction(log.engine) as connection:
        another = connection.scalars(select(events.c.body).where(events.c.seq == 2)).one()
        connection.execute(update(events).where(events.c.seq == 1).values(body=another))

    async def together() -> list[Receipt | BaseException]:
        recorder = Recorder(log, Curator())
        amend = partial(amend_lesson, log, answer="y", key=TEACHER)
        writes = [recorder.write(partial(amend, lesson_id)) for lesson_id in (damaged, sound)]
        try:
            return await asyncio.gather(*writes, return_exceptions=True)
        finally:
            await recorder.close()

    refused, changed = asyncio.run(together())
    assert isinstance(refused, KeyUnavailable)
    assert isinstance(changed, Receipt)
    assert log.head() == 3
