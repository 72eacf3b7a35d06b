"""What an erasure has found in cycles and model versions, for whoever asks after it later."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("erasures", sa.Column("report", sa.JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("erasures", "report")
