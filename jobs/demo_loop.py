"""The demo's five steps, after the endpoint is up."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.demo_asking import Conversation, Kind, Phase, Question, SteadyLoad, questions_of
from jobs.entry import bar, console
from pipeline.config import Recipe
from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, read_lines
from pipeline.home import Home
from serve.client import Reply

if TYPE_CHECKING:
    from pipeline.train.cycle import CycleResult

LOAD_INTERVAL_S = 4.0
SWAP_TIMEOUT_S, AFTER_SWAP_S = 60.0, 31.0


def pick(count: int, seed: int) -> list[LessonLine]:
    """``count`` facts of the example stream's reported part, chosen by the seed alone.

    The other part was used to train the router that ships, so it shows nothing.
    """
    lines = read_lines(example("world_changes/lessons.jsonl"), LessonLine)
    reported = [line for line in lines if line.extra("part") == "report"]
    return random.Random(seed).sample(reported, min(count, len(reported)))


@dataclass
class Demo:
    home: Home
    recipe: Recipe
    talk: Conversation
    lines: Sequence[LessonLine]

    def run(self) -> CycleResult:
        responses = self.execute()
        self.adjust(responses)
        result = self.keep_learning()
        self.show_again()
        return result

    def execute(self) -> dict[str, str]:
        """Ask everything before anything is corrected; gives the response to each lesson's question."""
        replies = self._ask_all("2  execute: asked before any correction", "before")
        asked = zip(self._questions("question", "paraphrase", "neighbour"), replies, strict=True)
        return {q.line.id or "": reply.response_id for q, reply in asked if q.kind == "question" and reply is not None}

    def adjust(self, responses: dict[str, str]) -> None:
        with bar() as progress:
            task = progress.add_task("3  adjust: correct, then ask again", total=len(self.lines))
            for line in self.lines:
                self.talk.correct(line, responses.get(line.id or "", ""))
                progress.advance(task)

    def keep_learning(self) -> CycleResult:
        """A cycle under steady load; the load goes on until half a minute after the swap."""
        from pipeline.train.cycle import run_cycle

        write = self.talk.transcript.write
        with (
            SteadyLoad(self.talk, self._questions("question", "neighbour", "paraphrase"), LOAD_INTERVAL_S) as load,
            bar() as progress,
        ):
            time.sleep(2 * LOAD_INTERVAL_S)  # the old version has answered before it is replaced
            write(phase="cycle", event="start")
            task = progress.add_task("4  keep learning", total=1)
            result = run_cycle(
                self.home,
                self.recipe,
                say=lambda stage, total, done: progress.update(
                    task, description=f"4  keep learning: {stage}", total=total, completed=done
                ),
            )
            self._record(result)
            if result.verdict is not None and result.verdict.promoted:
                progress.update(
                    task, description="4  keep learning: half a minute on the new version", total=1, completed=0
                )
                if load.swapped.wait(SWAP_TIMEOUT_S):
                    time.sleep(AFTER_SWAP_S)
            write(phase="cycle", event="end")
        return result

    def show_again(self) -> None:
        self._ask_all("5  show: the same questions after the cycle", "after")

    def _record(self, result: CycleResult) -> None:
        write = self.talk.transcript.write
        if result.verdict is None or result.exam is None or result.champion is None or result.challenger is None:
            console.print("the cycle found nothing to train", style="red")
            return
        rows = zip(result.exam.retention, result.champion.retention, result.challenger.retention, strict=True)
        for probe, before, after in rows:
            write(phase="retention", probe=probe.id or probe.question, champion=before, challenger=after)
        write(phase="gate", verdict=result.verdict.model_dump(mode="json"))

    def _ask_all(self, title: str, phase: Phase) -> list[Reply | None]:
        """Memory on, then memory off (weights only); gives the replies of the former."""
        on, off = self._questions("question", "paraphrase", "neighbour"), self._questions("question", "paraphrase")
        with bar() as progress:
            task = progress.add_task(title, total=len(on) + len(off))

            def done() -> None:
                progress.advance(task)

            replies = self.talk.ask_all(on, phase, "on", done)
            self.talk.ask_all(off, phase, "off", done)
        return replies

    def _questions(self, *kinds: Kind) -> list[Question]:
        return [question for line in self.lines for question in questions_of(line, kinds)]
