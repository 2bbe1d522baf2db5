"""Pages of price_sheets have room for a second version of each of their rows, so that no index has to be touched"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of pages written from now on; those that are there get it as their rows change."""
    op.execute("ALTER TABLE price_sheets SET (fillfactor = 45)")


def downgrade() -> None:
    op.execute("ALTER TABLE price_sheets RESET (fillfactor)")
