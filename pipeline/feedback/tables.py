"""The tables as queries see them; the migrations create them, and a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()
_LESSONS = text("kind = 'lesson'")

events = Table(
    "events",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("event_id", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("time", String(40), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("scope", String(16), nullable=False),
    Column("scope_id", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("schema_version", Integer, nullable=False),
    Column("feedback_id", Text, nullable=True),
    Column("part", Integer, nullable=False),  # position among the events of one feedback_id
    Column("response_id", Text, nullable=True),
    Column("lesson_id", Text, nullable=True),  # copied out of the body of lesson events, to be found by
    Column("body", Text, nullable=False),  # JSON; text, because PostgreSQL's jsonb refuses \u0000
    Column("key_name", Text, nullable=True),  # of the API key that it came with
    UniqueConstraint("tenant", "feedback_id", "part", name="uq_events_feedback"),
    Index("ix_events_kind_seq", "kind", "seq"),
    Index("ix_events_response_kind", "response_id", "kind"),
    Index("ix_events_lesson", "lesson_id"),
    # What one source or key has said lately, which curation counts; answers, most of the rows, are not in them.
    *(
        Index(name, "tenant", column, "time", sqlite_where=_LESSONS, postgresql_where=_LESSONS)
        for name, column in (("ix_events_said", "source"), ("ix_events_said_by_key", "key_name"))
    ),
)

# Which answers cite which lesson, and which lesson of everybody's an asker's own correction may be evidence for: what
# lineage follows, since the bodies themselves are encrypted.
citations = Table(
    "citations",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("lesson_id", String(64), primary_key=True),
    Index("ix_citations_lesson", "lesson_id"),
)

# The encoded wordings of a lesson event, encrypted as its body is: a cache, which goes with its event.
event_vectors = Table(
    "event_vectors",
    metadata,
    Column("event_id", String(64), ForeignKey("events.event_id", ondelete="CASCADE"), primary_key=True),
    Column("encoder", Text, primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("box", LargeBinary, nullable=False),
)

# The data key of each source, wrapped by a master key that lies elsewhere. A deleted row is a shredded source.
subject_keys = Table(
    "subject_keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("subject", String(64), nullable=False, unique=True),
    Column("master_id", String(64), nullable=False),
    Column("wrapped", Text, nullable=False),
    Column("created", String(40), nullable=False),
)

# What was erased, as keyed digests: enough to refuse it when it is imported again, too little to tell what it was.
tombstones = Table(
    "tombstones",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("time", String(40), nullable=False),
)

# Erasures asked for, and how far each has come: one that was interrupted goes on with what is not done yet.
erasures = Table(
    "erasures",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("time", String(40), nullable=False),
    Column("state", String(16), nullable=False),  # erasing | waiting (for a cycle) | done
    Column("plan", JSON, nullable=False),  # seqs and lesson ids: no text
    Column("report", JSON, nullable=True),  # cycles and model versions, once the copies are erased
    sqlite_autoincrement=True,
)

# One row, "events": the last seq given out. Locking it is what puts appends in commit order.
sequence = Table(
    "sequence",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger().with_variant(Integer, "sqlite"), nullable=False),
)

promotions = Table(
    "promotions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("version", Integer, nullable=False),
    Column("previous", Integer, nullable=True),
    Column("kind", String(16), nullable=False),  # initial | promote | rollback
    Column("cycle", Integer, nullable=True),
    Column("verdict", JSON, nullable=True),
    Column("time", String(40), nullable=False),
    sqlite_autoincrement=True,
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("version", Integer, nullable=False),
    Column("cycle", Integer, nullable=True),
    Column("promoted", Boolean, nullable=False),
    Column("verdict", JSON, nullable=False),
    Column("time", String(40), nullable=False),
    sqlite_autoincrement=True,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_hash", String(80), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("created", String(40), nullable=False),
)
