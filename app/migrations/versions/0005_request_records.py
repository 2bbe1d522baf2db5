"""Records of answered requests, a partition per day, and which of them are there"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "record_sources",
        sa.Column("source_key", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False, comment="a process that answered requests"),
        sa.Column(
            "process_id",
            sa.BigInteger(),
            nullable=True,
            comment="the operating system's; null where only its end is known",
        ),
        sa.Column(
            "ended_sequence",
            sa.BigInteger(),
            nullable=True,
            comment="the last number that it gave; null while it may give more",
        ),
        sa.Column(
            "forgotten_sequence",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="up to here it is no longer known which requests were kept: they are older than the retention",
        ),
        sa.Column(
            "heard_at", sa.DateTime(timezone=True), nullable=False, comment="when its last entry came into the stream"
        ),
        sa.PrimaryKeyConstraint("source_key", name=op.f("record_sources_pkey")),
        sa.UniqueConstraint("source", name=op.f("record_sources_source_key")),
    )
    op.create_table(
        "record_ranges",
        sa.Column("source_key", sa.Integer(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("earliest_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("latest_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["source_key"],
            ["record_sources.source_key"],
            name=op.f("record_ranges_source_key_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("source_key", "first", name=op.f("record_ranges_pkey")),
        comment="what is in request_records; ranges that touch are one, so what is between two is missing",
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "request_records",
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="when it arrived in the stream, where its clock cannot be right",
        ),
        sa.Column("latency_ns", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False, comment="the source's number for it"),
        sa.Column("sent_bytes", sa.BigInteger(), nullable=False),
        sa.Column("source_key", sa.Integer(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("sampled", sa.Boolean(), nullable=False),
        sa.Column("trace_id", sa.Uuid(), nullable=True),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False, comment="empty where there was none; so is user_id"),
        sa.Column("user_id", sa.Text(), nullable=False),
        comment="one row per answered request, exactly; a partition per UTC day, in no order that keys would give",
        postgresql_partition_by="RANGE (started_at)",
    )
    op.create_index(op.f("request_records_key_id_started_at_idx"), "request_records", ["key_id", "started_at"])


def downgrade() -> None:
    """Every partition goes with its table."""
    op.drop_table("request_records")
    op.drop_table("record_ranges")
    op.drop_table("record_sources")
