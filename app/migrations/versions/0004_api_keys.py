"""Consumers and their API keys"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "consumers",
        sa.Column("consumer_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("consumer_id", name=op.f("consumers_pkey")),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("consumer_id", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False, comment="keyed; of the whole key"),
        sa.Column("mark", sa.LargeBinary(), nullable=False, comment="of the secret that it is hashed with"),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False, comment="read, publish, admin"),
        sa.Column("limit_requests", sa.Integer(), nullable=True),
        sa.Column("limit_window_s", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rotated_from", sa.Text(), nullable=True),
        sa.Column("change", sa.BigInteger(), nullable=False, comment="the last one made to it, as key_changes counts"),
        sa.CheckConstraint("(limit_requests IS NULL) = (limit_window_s IS NULL)", name=op.f("api_keys_limit_check")),
        sa.ForeignKeyConstraint(["consumer_id"], ["consumers.consumer_id"], name=op.f("api_keys_consumer_id_fkey")),
        sa.ForeignKeyConstraint(["rotated_from"], ["api_keys.key_id"], name=op.f("api_keys_rotated_from_fkey")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("api_keys_pkey")),
        sa.UniqueConstraint("hash", name=op.f("api_keys_hash_key")),
    )
    op.create_index(op.f("api_keys_consumer_id_key_id_idx"), "api_keys", ["consumer_id", "key_id"])
    op.create_index(op.f("api_keys_change_idx"), "api_keys", ["change"])
    op.create_table(
        "key_changes",
        sa.Column("single", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("change", sa.BigInteger(), nullable=False, comment="counts the changes of api_keys, in commit order"),
        sa.CheckConstraint("single", name=op.f("key_changes_single_check")),
        sa.PrimaryKeyConstraint("single", name=op.f("key_changes_pkey")),
    )
    op.execute("INSERT INTO key_changes (change) VALUES (0)")


def downgrade() -> None:
    op.drop_table("key_changes")
    op.drop_table("api_keys")
    op.drop_table("consumers")
