"""Curation: what an asker says is looked at before it counts for anybody else.

What looks like junk, comes in floods, or comes from somebody whose word has mostly been contradicted is held back: the
events say so themselves, so a replay of the log holds back the same. It is right at once in the asker's own scope, as
everything that an asker says; nobody else's memory and no cycle's manifest takes it, until a review accepts it. Keys
that teach are trusted: their corrections are never held back. Which of two answers is right is the lesson memory's to
say (``pipeline/memory/belief.py``), not curation's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from rapidfuzz import fuzz

from pipeline.config import CurationSettings
from pipeline.feedback.events import EventLog
from pipeline.feedback.keys import Key
from pipeline.feedback.records import ACCEPTED, HELD, Event, NewEvent, new_id
from pipeline.memory.types import question_key

Decision = Literal["accept", "reject"]
LONGEST_RUN = 6  # of one character: "!!!!!!", "aaaaaa"
MOST_OF_ONE_WORD = 0.6  # of the words of a text with five or more
_LINK = re.compile(r"https?://|www\.|</?[a-z][^>]*>", re.IGNORECASE)
_RUN = re.compile(rf"([^\d\s])\1{{{LONGEST_RUN - 1},}}")
_MASHED = re.compile(r"\b[bcdfghjklmnpqrstvwxz]{7,}\b")  # seven small consonants are no word


class NotHeld(LookupError):  # noqa: N818 - reads as what happened
    """No feedback with this id is held back in this tenant."""


def _known_to_nobody(_tenant: str, _source: str) -> float:
    return 1.0


class Curator:
    """Decides what is held back, by rules that need no model. ``trust``: the lesson memory's, of a source."""

    def __init__(
        self, settings: CurationSettings | None = None, trust: Callable[[str, str], float] = _known_to_nobody
    ) -> None:
        self.settings = settings or CurationSettings()
        self._trust = trust

    def screened(self, log: EventLog, events: Sequence[NewEvent]) -> list[NewEvent]:
        """The events of one feedback as they are to be logged: marked, and with a record, where they are held back."""
        return self.screen(log, [events])[0]

    def screen(self, log: EventLog, feedbacks: Sequence[Sequence[NewEvent]]) -> list[list[NewEvent]]:
        """The same for each of many: what a source or a key says earlier among them counts against it, too."""
        votes = [next((event for event in reversed(events) if _is_vote(event)), None) for events in feedbacks]
        lately = _Lately(log, [vote for vote in votes if vote is not None], self.settings)
        screened = []
        for events, vote in zip(feedbacks, votes, strict=True):
            reasons = [] if vote is None else self._reasons(lately, vote)
            screened.append(_marked(events, vote, reasons) if vote is not None and reasons else list(events))
            lately.add(events)
        return screened

    def _reasons(self, lately: _Lately, vote: NewEvent) -> list[str]:
        """Why the vote does not count for others yet; none of the reasons quotes anybody."""
        settings, corrects = self.settings, vote.body.get("op") == "correct"
        found = list(junk(vote.body)) if settings.junk and corrects else []
        if self._trust(vote.tenant, vote.source) < settings.least_trust:
            found.append("most of what this source said before was contradicted")
        if settings.per_key_hour and lately.of_key(vote) >= settings.per_key_hour:
            found.append(f"more than {settings.per_key_hour} corrections and ratings with one key in an hour")
        if settings.per_source_hour and lately.of_source(vote) >= settings.per_source_hour:
            return [*found, f"more than {settings.per_source_hour} corrections and ratings of one source in an hour"]
        if settings.repeats and corrects:
            others = alike(lately.said(vote), vote, settings.near)
            if others >= settings.repeats:
                found.append(f"nearly the same answer to {others} other questions in an hour")
        return found


class _Lately:
    """What the sources and keys of some votes have said in the last hour: in the log, and among these votes."""

    def __init__(self, log: EventLog, votes: Sequence[NewEvent], settings: CurationSettings) -> None:
        self._log = log
        self._since = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="milliseconds")
        self._new: list[NewEvent] = []
        self._seen: set[tuple[str, str | None]] = set()
        self._counts: Counter[tuple[str, str, str]] = Counter()  # by what is counted, tenant, its name
        for tenant in {vote.tenant for vote in votes}:
            here = [vote for vote in votes if vote.tenant == tenant]
            named = {vote.feedback_id for vote in here if vote.feedback_id is not None}
            self._seen |= {(tenant, feedback_id) for feedback_id in log.recorded(tenant, named)}
            if settings.per_source_hour:
                self._count("source", tenant, log.count_said(tenant, {vote.source for vote in here}, self._since))
            keys = {vote.key_name for vote in here if vote.key_name is not None}
            if settings.per_key_hour and keys:
                self._count("key", tenant, log.count_by_key(tenant, keys, self._since))

    def _count(self, what: str, tenant: str, counts: dict[str, int]) -> None:
        self._counts.update({(what, tenant, name): count for name, count in counts.items()})

    def of_source(self, vote: NewEvent) -> int:
        return self._counts["source", vote.tenant, vote.source]

    def of_key(self, vote: NewEvent) -> int:
        return 0 if vote.key_name is None else self._counts["key", vote.tenant, vote.key_name]

    def said(self, vote: NewEvent) -> list[NewEvent]:
        """The lesson events of the vote's source."""
        new = (event for event in self._new if (event.tenant, event.source) == (vote.tenant, vote.source))
        return [*self._log.said_lately(vote.tenant, vote.source, self._since), *new]

    def add(self, events: Sequence[NewEvent]) -> None:
        """Count one feedback, once: the same feedback id again adds nothing to the log."""
        if (named := (events[0].tenant, events[0].feedback_id)) in self._seen:
            return
        if events[0].feedback_id is not None:
            self._seen.add(named)
        for event in events:
            if event.kind == "lesson":
                self._new.append(event)
                self._counts["source", event.tenant, event.source] += 1
                if event.key_name is not None and event.role == "ask":
                    self._counts["key", event.tenant, event.key_name] += 1


def _marked(events: Sequence[NewEvent], vote: NewEvent, reasons: list[str]) -> list[NewEvent]:
    marked = [replace(event, body={**event.body, HELD: reasons}) for event in events]
    return [*marked, replace(vote, kind="quarantine", event_id=new_id("evt"), body={"reasons": reasons})]


def junk(body: dict[str, Any]) -> Iterator[str]:
    """What no right answer to a question looks like."""
    answer = str(body["answer"])
    words = question_key(answer).split()
    if not any(character.isalnum() for character in answer):
        yield "no letter and no digit"
        return
    if _RUN.search(answer) or (len(words) >= 5 and Counter(words).most_common(1)[0][1] > MOST_OF_ONE_WORD * len(words)):
        yield "one character or word again and again"
    if _MASHED.search(answer):
        yield "no word of any language"
    if _LINK.search(answer) and not _LINK.search(str(body["question"])):
        yield "a link or markup"
    if len(words) >= 4 and fuzz.ratio(question_key(answer), question_key(str(body["question"]))) >= 95:
        yield "the question itself"


def alike(said: Sequence[NewEvent], vote: NewEvent, near: float) -> int:
    """How many other questions were given nearly the same answer."""
    own, answer = question_key(vote.body["question"]), question_key(vote.body["answer"])
    return len(
        {
            question
            for event in said
            if event.body.get("op") == "correct"
            and (question := question_key(event.body["question"])) != own
            and fuzz.ratio(question_key(event.body["answer"]), answer, score_cutoff=100 * near)
        }
    )


def _is_vote(event: NewEvent) -> bool:
    """Whether it is something that an asker says and that would count for others."""
    if event.role != "ask":
        return False
    if event.kind == "lesson":
        return event.body["op"] in ("correct", "rate")
    return event.kind == "feedback" and event.body["kind"] == "rating"


@dataclass(frozen=True)
class Held:
    """A feedback that is held back, or was."""

    feedback_id: str
    time: str
    source: str
    reasons: tuple[str, ...]
    question: str
    said: str | float  # the answer that it gives, or the rating
    decision: Decision | None


def held(log: EventLog, tenant: str = "default", *, everything: bool = False) -> list[Held]:
    """What waits for a review, oldest first; ``everything``: what was decided, too."""
    events = list(log.pages(kinds=("quarantine", "review")))
    decided = decisions(events)
    found = []
    for event in events:
        decision = decided.get((event.tenant, event.feedback_id or ""))
        if event.kind == "quarantine" and event.tenant == tenant and (everything or decision is None):
            said = log.by_feedback(tenant, event.feedback_id or "")[0].body
            value = said.get("value")
            found.append(
                Held(
                    feedback_id=event.feedback_id or "",
                    time=event.time,
                    source=event.source,
                    reasons=tuple(event.body["reasons"]),
                    question=said.get("question") or "",
                    said=said.get("answer", "") if value is None else value,
                    decision=decision,
                )
            )
    return found


def decisions(events: Sequence[Event]) -> dict[tuple[str, str], Decision]:
    """What reviews decided, by (tenant, feedback id)."""
    return {(e.tenant, e.body["feedback_id"]): e.body["decision"] for e in events if e.kind == "review"}


def review(log: EventLog, feedback_id: str, decision: Decision, key: Key) -> Decision:
    """Decide about one feedback, once; returns what was decided, by whoever came first.

    Accepted, its lesson event is told again and counts from then on, as its source's evidence at the end of the log.
    Raises :class:`NotHeld`.
    """
    events = log.by_feedback(key.tenant, feedback_id)
    if not any(event.kind == "quarantine" for event in events):
        raise NotHeld(f"no feedback with id {feedback_id!r:.80} is held back: see 'agm feedback review list'")
    own = review_id(feedback_id)
    record = NewEvent(
        kind="review",
        body={"feedback_id": feedback_id, "decision": decision},
        source=key.name,
        role=key.role,
        tenant=key.tenant,
        feedback_id=own,
    )
    again = [_again(event, own) for event in events if event.kind == "lesson"] if decision == "accept" else []
    decided: Decision = log.append([record, *again])[0].body["decision"]
    return decided


def review_id(feedback_id: str) -> str:
    """The feedback id of what a review says about a feedback."""
    return f"review:{feedback_id}"


def _again(event: Event, feedback_id: str) -> NewEvent:
    body = {name: value for name, value in event.body.items() if name != HELD}
    told = {name: getattr(event, name) for name in ("source", "role", "tenant", "scope", "scope_id", "response_id")}
    return NewEvent(kind="lesson", body={**body, ACCEPTED: True}, feedback_id=feedback_id, **told)
