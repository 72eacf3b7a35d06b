"""An answer among all that was said about it is told by the index alone."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_events_response_kind", "events", ["response_id", "kind"])
    op.drop_index("ix_events_response", "events")


def downgrade() -> None:
    op.create_index("ix_events_response", "events", ["response_id"])
    op.drop_index("ix_events_response_kind", "events")
