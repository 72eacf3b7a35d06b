"""The demo's conversation with the endpoint: every request goes over HTTP and into the transcript."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from pipeline.data.lines import LessonLine
from pipeline.feedback.records import utc_now
from serve.client import Client, ClientError, Reply

Phase = Literal["before", "adjust", "load", "after"]
Kind = Literal["question", "paraphrase", "neighbour"]
CONCURRENT = 64


class Transcript:
    """Appends one JSON object a line, flushed at once, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w", encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, **record: Any) -> None:
        with self._lock:
            self._file.write(json.dumps({"time": utc_now(), **record}, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Question:
    """One thing to ask about a lesson of the stream."""

    line: LessonLine
    kind: Kind
    text: str

    @property
    def expected(self) -> list[str]:
        return [] if self.kind == "neighbour" else [self.line.answer]


def questions_of(line: LessonLine, kinds: Sequence[Kind]) -> list[Question]:
    """The question, a paraphrase that is never posted, a neighbour that is not in the stream."""
    texts: dict[Kind, str] = {
        "question": line.question,
        "paraphrase": line.paraphrases[0],
        "neighbour": line.neighbours[0],
    }
    return [Question(line, kind, texts[kind]) for kind in kinds]


@dataclass
class Conversation:
    client: Client
    transcript: Transcript

    def ask(
        self, question: Question, phase: Phase, memory: Literal["on", "off"], lesson_id: str | None = None
    ) -> Reply | None:
        """``None`` where the request failed; the transcript has the status (0: no answer at all)."""
        began = time.perf_counter()
        reply, status = None, 200
        try:
            reply = self.client.ask(question.text, strategy="weights" if memory == "off" else None)
        except ClientError as error:
            status = error.status
        except httpx.HTTPError:
            status = 0
        self.transcript.write(
            phase=phase,
            kind=question.kind,
            lesson=question.line.id,
            question=question.text,
            expected=question.expected,
            raw=reply.text if reply else "",
            memory=memory,
            strategy=reply.strategy if reply else None,
            lessons=[lesson["lesson_id"] for lesson in reply.lessons] if reply else [],
            lesson_id=lesson_id,
            model_version=reply.model_version if reply else None,
            ms=round((time.perf_counter() - began) * 1000, 1),
            status=status,
        )
        return reply

    def ask_all(
        self, questions: Iterable[Question], phase: Phase, memory: Literal["on", "off"], done: Callable[[], None]
    ) -> list[Reply | None]:
        """Concurrently, in the order of ``questions``."""

        def one(question: Question) -> Reply | None:
            reply = self.ask(question, phase, memory)
            done()
            return reply

        with ThreadPoolExecutor(CONCURRENT) as pool:
            return list(pool.map(one, questions))

    def correct(self, line: LessonLine, response_id: str) -> str | None:
        """Post the correction, then ask the question, a paraphrase and a neighbour. Gives the lesson's id."""
        began = time.perf_counter()
        lesson_id, status, waited = None, 200, None
        try:
            receipt = self.client.correct(response_id, line.answer, feedback_id=f"demo-{line.id}", source=line.source)
            lesson_id = receipt["lesson_id"]
        except ClientError as error:
            status = error.status
        question, paraphrase, neighbour = questions_of(line, ("question", "paraphrase", "neighbour"))
        if self.ask(question, "adjust", "on", lesson_id) is not None:
            waited = round((time.perf_counter() - began) * 1000, 1)
        self.transcript.write(phase="correction", lesson=line.id, ms_to_answer=waited, status=status)
        self.ask(paraphrase, "adjust", "on", lesson_id)
        self.ask(neighbour, "adjust", "on", lesson_id)
        return lesson_id


class SteadyLoad:
    """Asks one question every ``interval_s`` in the background and notes when another model version answers."""

    def __init__(self, conversation: Conversation, questions: Sequence[Question], interval_s: float) -> None:
        self._conversation, self._questions, self._interval = conversation, questions, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.version: int | None = None
        self.swapped = threading.Event()

    def __enter__(self) -> SteadyLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with ThreadPoolExecutor(CONCURRENT) as pool:
            for number in range(10**9):
                if self._stop.wait(self._interval):
                    return
                question = self._questions[number % len(self._questions)]
                pool.submit(self._one, question, "on" if number % 4 else "off")

    def _one(self, question: Question, memory: Literal["on", "off"]) -> None:
        reply = self._conversation.ask(question, "load", memory)
        if reply is None:
            return
        if self.version is not None and reply.model_version > self.version and not self.swapped.is_set():
            self.swapped.set()
            self._conversation.transcript.write(phase="cycle", event="swap")
        self.version = max(self.version or 0, reply.model_version)
