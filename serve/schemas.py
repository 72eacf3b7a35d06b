"""What travels over HTTP: OpenAI's fields and a few of ours; unknown fields are ignored as OpenAI does."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.evaluate.gate import Check

MAX_ID = 128
MAX_VALUE = 4_000
Name = Annotated[str, Field(max_length=MAX_ID, pattern=r"^[^\x00-\x1f\x7f]*$")]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Identifier = Annotated[str, Field(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00-\x1f\x7f]*$")]
StrategyName = Literal["adaptive", "copy", "context", "infer", "weights"]


def utf8(value: Any) -> Any:
    """``value`` as it came, if all of its text is text: JSON can name half of a surrogate pair, UTF-8 cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        place = f"{error.object[max(0, error.start - 20) : error.end]!r}"
        raise ValueError(f"the body holds half of a surrogate pair near {place}: send complete characters") from None
    return value


class RequestBody(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, body: Any) -> Any:
        return utf8(body)


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    @field_validator("role", mode="before")
    @classmethod
    def _developer(cls, role: Any) -> Any:
        return "system" if role == "developer" else role  # OpenAI's newer word for the same

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(RequestBody):
    """``POST /v1/chat/completions``. Without ``temperature`` decoding is greedy, as everything here is measured."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=1024)
    max_completion_tokens: int | None = Field(None, ge=1, le=1024)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    n: Literal[1] = 1
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    user: Name = Field("", description="the end user, whose own corrections are read for nobody else")
    session: Name = ""
    strategy: StrategyName | None = Field(None, description="'weights': memory off; default: the recipe's")
    min_lesson_seq: int = Field(0, ge=0, le=2**62, description="answer only when lessons up to here are known")
    store: bool = Field(
        False, description="later cycles may replay the question, so that what the model says to it stays"
    )
    options: list[str] = Field([], max_length=64, description="choose one of these; probabilities come back")

    @field_validator("messages")
    @classmethod
    def _asks(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        if messages[-1].role != "user" or not messages[-1].text.strip():
            raise ValueError("the last message must have role 'user' and some text")
        return messages

    @field_validator("options")
    @classmethod
    def _named(cls, options: list[str]) -> list[str]:
        if any(not option.strip() for option in options) or len(set(options)) < len(options) or len(options) == 1:
            raise ValueError("give at least two different options, none of them empty")
        return options

    @property
    def question(self) -> str:
        return self.messages[-1].text

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def notes(self) -> list[str]:
        sampled = {"top_p": self.top_p is not None and self.top_p < 1, "seed": self.seed is not None}
        return [f"{name} has no effect without temperature" for name, given in sampled.items() if given] * (
            not self.temperature
        )


class CitedLesson(BaseModel):
    lesson_id: str
    weight: float
    belief: float
    question: str
    answer: str


class MemoryReport(BaseModel):
    """The extra field ``memory``: how the lesson memory took part."""

    model_config = ConfigDict(protected_namespaces=())

    strategy: str
    question: str = Field(description="what was asked: the last message, completed where it leans on an earlier one")
    probabilities: dict[str, float]
    lessons: list[CitedLesson]
    null_weight: float
    copied: float = Field(description="probability that the text is a lesson's; between 0 and 1 if a mixture decoded")
    state: dict[str, float] = Field({}, description="what the choice of the strategy was made from, if one was made")
    model_version: int
    lesson_seq: int
    response_id: str
    options: dict[str, float] = {}
    notes: list[str] = []


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ReplyChoice(BaseModel):
    index: int = 0
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]


class ChatReply(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ReplyChoice]
    usage: Usage
    memory: MemoryReport


class FeedbackRequest(RequestBody):
    """``feedback_id`` is the idempotency key: the same one again changes nothing and gives the first receipt."""

    response_id: Identifier
    kind: Literal["rating", "correction", "comment"]
    value: float | str = Field(description="rating: -1 to 1; correction: the right answer; comment: text")
    tags: list[str] = Field([], max_length=32)
    source: Name = Field("", description="who says it; default: the name of the key")
    session: Name = Field("", description="a correction given here is read in this session alone")
    feedback_id: Identifier | None = None

    @field_validator("tags")
    @classmethod
    def _short(cls, tags: list[str]) -> list[str]:
        if any(not tag or len(tag) > MAX_ID for tag in tags):
            raise ValueError(f"a tag has 1 to {MAX_ID} characters")
        return tags

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "rating":
            if isinstance(self.value, str) or not -1 <= self.value <= 1:
                raise ValueError("value: a rating is a number from -1 to 1")
        elif not isinstance(self.value, str) or not self.value.strip():
            raise ValueError(f"value: a {self.kind} is a text that is not empty")
        elif len(self.value) > MAX_VALUE:
            raise ValueError(f"value: {len(self.value)} characters, at most {MAX_VALUE}: shorten it")
        return self


class OverlapReply(BaseModel):
    lesson_id: str
    question: str
    answer: str = Field(description="before")
    replaced: bool = Field(
        description="the lesson has the new answer; if not, both stand, and the older one still answers its own wording"
    )


class FeedbackReply(BaseModel):
    feedback_id: str
    seq: int
    lesson_id: str | None
    lesson_seq: int | None
    duplicate: bool
    quarantined: list[str] = Field([], description="why it does not count for others until a review accepts it")
    overlap: OverlapReply | None = Field(
        None, description="of a taught lesson: the one that answered its question so far, in other words"
    )


class LessonReply(BaseModel):
    lesson_id: str
    question: str
    answer: str
    beliefs: dict[str, float]
    belief: float = Field(description="in ``answer``")
    trust: float = Field(description="of the source that gave the answer")
    previous: str | None
    paraphrases: list[str]
    scope: str
    source: str
    first_seq: int
    last_seq: int
    date: str | None
    expires: str | None = Field(description="from then on it is not read")
    changed: str = Field(description="when")


class LessonChange(RequestBody):
    """``PATCH /v1/lessons/{lesson_id}``: what is left out stays; paraphrases are added to those that are there."""

    answer: Annotated[str, Field(min_length=1, max_length=MAX_VALUE, pattern=r"\S")] | None = None
    paraphrases: list[Annotated[str, Field(min_length=1, max_length=MAX_VALUE, pattern=r"\S")]] = Field(
        [], max_length=64
    )
    feedback_id: Identifier | None = None
    session: Name = ""

    @model_validator(mode="after")
    def _changes(self) -> Self:
        if self.answer is None and not self.paraphrases:
            raise ValueError("nothing to change: give answer, paraphrases or both")
        return self


class LessonPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[LessonReply]
    total: int = Field(description="lessons that match, on all pages")
    has_more: bool
    lesson_seq: int


class ModelReply(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "autogpt-memory"
    version: int


class ModelPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelReply]


class CycleReply(BaseModel):
    """One decision of the gate; ``cycle`` is absent where a person decided."""

    version: int
    cycle: int | None
    time: str
    promoted: bool
    champion: bool
    reasons: list[str]
    checks: list[Check]


class CyclePage(BaseModel):
    object: Literal["list"] = "list"
    data: list[CycleReply]


class ErrorInside(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorInside


class LineageEvent(BaseModel):
    seq: int
    kind: str
    time: str
    source: str
    feedback_id: str | None
    response_id: str | None
    body: dict[str, Any]


class LineageLesson(BaseModel):
    lesson_id: str
    question: str | None
    answer: str | None
    events: list[LineageEvent]


class LineageVersion(BaseModel):
    """A model version as its bundle describes itself; ``code`` is the revision that made it."""

    version: int
    cycle: int
    parent: int | None
    trained_through_seq: int
    code: str
    base_digest: str
    tensors_digest: str
    recipe: dict[str, Any]


class LineageCycle(BaseModel):
    """A cycle: the range of events that it read, the lessons that it trained, the version that it made."""

    cycle: int
    version: int | None
    from_seq: int
    to_seq: int
    lessons: list[str]


class Lineage(BaseModel):
    """From one answer back to the model and the feedback behind it."""

    model_config = ConfigDict(protected_namespaces=())

    response_id: str
    answer: LineageEvent
    model_version: int | None
    versions: list[LineageVersion] = Field(description="the one that answered, then its ancestors")
    lessons: list[LineageLesson]
    cycles: list[LineageCycle] = Field(description="that made these versions")
    feedback: list[LineageEvent]


class TouchedAnswer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    response_id: str
    time: str
    model_version: int | None


class FeedbackLineage(BaseModel):
    """From one feedback on to every answer, cycle and model version that it touched; answers by their ids alone."""

    feedback_id: str
    events: list[LineageEvent]
    answered: str | None = Field(description="the answer that it was about")
    lessons: list[str]
    cycles: list[LineageCycle]
    versions: list[int]
    answers: list[TouchedAnswer]
