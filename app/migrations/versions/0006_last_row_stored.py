"""How far the rows of a recalculation's part are stored, instead of whether all that is stored is cached"""

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
            "stored_product",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="the last row stored; where that is further, what lies between may not be cached",
        ),
    )
    op.add_column("task_parts", sa.Column("stored_location", sa.Integer(), server_default="0", nullable=False))
    # How far a turn got that did not end orderly is not known.
    op.execute(
        "UPDATE task_parts SET stored_product = until_product, stored_location = until_location WHERE NOT orderly"
    )
    op.drop_column("task_parts", "orderly")


def downgrade() -> None:
    op.add_column(
        "task_parts",
        sa.Column(
            "orderly",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="all that is stored is cached",
        ),
    )
    op.execute("UPDATE task_parts SET orderly = (stored_product, stored_location) <= (after_product, after_location)")
    op.drop_column("task_parts", "stored_location")
    op.drop_column("task_parts", "stored_product")
