"""The encoded wordings of lesson events."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event_vectors",
        sa.Column("event_id", sa.String(64), sa.ForeignKey("events.event_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("encoder", sa.Text, primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("box", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("event_vectors")
