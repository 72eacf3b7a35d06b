"""Which API key an event came with: curation counts what one key says, whatever sources it speaks for."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("key_name", sa.Text, nullable=True))
    said = sa.text("kind = 'lesson'")
    op.create_index(
        "ix_events_said_by_key", "events", ["tenant", "key_name", "time"], sqlite_where=said, postgresql_where=said
    )


def downgrade() -> None:
    op.drop_index("ix_events_said_by_key", "events")
    op.drop_column("events", "key_name")
