"""Keys, citations, tombstones and erasures; rows of version 1 stay as they are, and readable."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
PAGE = 5_000


def upgrade() -> None:
    op.create_table(
        "subject_keys",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("subject", sa.String(64), nullable=False, unique=True),
        sa.Column("master_id", sa.String(64), nullable=False),
        sa.Column("wrapped", sa.Text, nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
    )
    op.create_table(
        "tombstones",
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("time", sa.String(40), nullable=False),
    )
    op.create_table(
        "erasures",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("time", sa.String(40), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    citations = op.create_table(
        "citations",
        sa.Column("seq", BIG, primary_key=True, autoincrement=False),
        sa.Column("lesson_id", sa.String(64), primary_key=True),
    )
    op.create_index("ix_citations_lesson", "citations", ["lesson_id"])
    _copy_citations(op.get_bind(), citations)


def _copy_citations(connection: sa.Connection, citations: sa.Table) -> None:
    """The lessons that the answers of version 1 cite stand in their bodies, which are plain JSON."""
    events = sa.table("events", sa.column("seq"), sa.column("kind"), sa.column("body"))
    seq = 0
    while True:
        query = sa.select(events.c.seq, events.c.body).where(events.c.kind == "answer", events.c.seq > seq)
        answers = connection.execute(query.order_by(events.c.seq).limit(PAGE)).all()
        if not answers:
            return
        cited = {(row.seq, c["lesson_id"]) for row in answers for c in json.loads(row.body).get("lessons", ())}
        if cited:
            connection.execute(citations.insert(), [{"seq": s, "lesson_id": i} for s, i in sorted(cited)])
        seq = answers[-1].seq


def downgrade() -> None:
    for table in ("citations", "erasures", "tombstones", "subject_keys"):
        op.drop_table(table)
