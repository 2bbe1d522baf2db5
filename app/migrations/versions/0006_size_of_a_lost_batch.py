"""How many rows a recalculation's turn that died may have stored without caching them"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "task_parts",
        sa.Column(
            "batch_rows",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="else, up to so many rows are not",
        ),
    )


def downgrade() -> None:
    op.drop_column("task_parts", "batch_rows")
