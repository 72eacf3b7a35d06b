"""An index of what each source has said: curation counts it before it takes more."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    lessons = sa.text("kind = 'lesson'")
    op.create_index(
        "ix_events_said", "events", ["tenant", "source", "time"], sqlite_where=lessons, postgresql_where=lessons
    )


def downgrade() -> None:
    op.drop_index("ix_events_said", "events")
