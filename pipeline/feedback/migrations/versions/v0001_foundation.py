"""Events and their counter, promotions and verdicts, API keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _create_events()
    _create_records()


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("seq", BIG, primary_key=True, autoincrement=False),
        sa.Column("event_id", sa.String(64), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("time", sa.String(40), nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("scope_id", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("feedback_id", sa.Text, nullable=True),
        sa.Column("part", sa.Integer, nullable=False),
        sa.Column("response_id", sa.Text, nullable=True),
        sa.Column("lesson_id", sa.Text, nullable=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.UniqueConstraint("tenant", "feedback_id", "part", name="uq_events_feedback"),
    )
    op.create_index("ix_events_kind_seq", "events", ["kind", "seq"])
    op.create_index("ix_events_response", "events", ["response_id"])
    op.create_index("ix_events_lesson", "events", ["lesson_id"])
    counter = op.create_table(
        "sequence",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", BIG, nullable=False),
    )
    op.bulk_insert(counter, [{"name": "events", "value": 0}])


def _create_records() -> None:
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("previous", sa.Integer, nullable=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("cycle", sa.Integer, nullable=True),
        sa.Column("verdict", sa.JSON, nullable=True),
        sa.Column("time", sa.String(40), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "verdicts",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("cycle", sa.Integer, nullable=True),
        sa.Column("promoted", sa.Boolean, nullable=False),
        sa.Column("verdict", sa.JSON, nullable=False),
        sa.Column("time", sa.String(40), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "api_keys",
        sa.Column("key_hash", sa.String(80), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
    )


def downgrade() -> None:
    for table in ("api_keys", "verdicts", "promotions", "sequence", "events"):
        op.drop_table(table)
