"""Tasks in parts that workers share; several scopes, a signal to set, and requests for the same work joined"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UNFINISHED = sa.text("state IN ('queued', 'running')")


def upgrade() -> None:
    op.create_table(
        "task_parts",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, comment="queued, running, succeeded, failed"),
        sa.Column(
            "after_product", sa.Integer(), nullable=False, comment="the last row done; at first, the part's start"
        ),
        sa.Column("after_location", sa.Integer(), nullable=False),
        sa.Column("until_product", sa.Integer(), nullable=False, comment="its last row"),
        sa.Column("until_location", sa.Integer(), nullable=False),
        sa.Column("done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("changed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False, comment="turns since it got further"),
        sa.Column(
            "orderly",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="all that is stored is cached",
        ),
        sa.Column(
            "token", sa.BigInteger(), server_default="0", nullable=False, comment="of whoever may write: the fence"
        ),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.task_id"], name=op.f("task_parts_task_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "part", name=op.f("task_parts_pkey")),
    )
    op.create_index("task_parts_open_idx", "task_parts", ["updated_at"], postgresql_where=_UNFINISHED)
    op.create_table(
        "task_batches",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("noted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.task_id"], name=op.f("task_batches_task_id_fkey"), ondelete="CASCADE"
        ),
        comment="of tasks that run: how fast they are",
    )
    op.create_index(op.f("task_batches_task_id_noted_at_idx"), "task_batches", ["task_id", "noted_at"])
    op.add_column("tasks", sa.Column("started_at", sa.DateTime(timezone=True)))
    op.add_column("tasks", sa.Column("ended_at", sa.DateTime(timezone=True)))
    op.add_column(
        "tasks", sa.Column("scopes", postgresql.JSONB(), comment="the rows it is about, in any of these: RowScope, …")
    )
    op.add_column(
        "tasks", sa.Column("signal", postgresql.JSONB(), comment="what it sets before it reprices: SignalChange")
    )
    op.add_column("tasks", sa.Column("cause", sa.Text(), comment="what history shows: event:<id> or import:<name>"))
    op.add_column(
        "tasks", sa.Column("work", sa.Text(), comment="digest of what it does; null where nobody else may join it")
    )
    op.add_column("tasks", sa.Column("joined", sa.Text(), comment="the task that does this work"))
    op.create_foreign_key(op.f("tasks_joined_fkey"), "tasks", "tasks", ["joined"], ["task_id"], ondelete="CASCADE")
    # One that has begun goes on as a single part, from where it is; one that has not is divided when it begins.
    op.execute(
        "INSERT INTO task_parts (task_id, part, state, after_product, after_location, until_product, until_location,"
        "   done, changed, orderly, error)"
        " SELECT task_id, 0, state, last_product_key, last_location_key, 2147483647, 2147483647, done, changed,"
        "   state = 'succeeded', error"
        " FROM tasks WHERE state <> 'queued' AND task_id NOT LIKE 'importing:%'"
    )
    op.execute(
        "UPDATE tasks SET scopes = jsonb_build_array(scope),"
        " cause = CASE WHEN task_id LIKE 'import:%' THEN regexp_replace(task_id, ':[^:]*$', '')"
        "   ELSE 'event:' || task_id END,"
        " state = CASE WHEN state = 'running' AND task_id LIKE 'importing:%' THEN 'queued' ELSE state END,"
        " started_at = CASE WHEN state <> 'queued' THEN created_at END,"
        " ended_at = CASE WHEN state IN ('succeeded', 'failed') THEN updated_at END"
    )
    op.alter_column("tasks", "scopes", nullable=False)
    op.alter_column("tasks", "cause", nullable=False)
    op.alter_column("tasks", "total", nullable=True, comment="rows, once counted")
    op.alter_column(
        "tasks",
        "state",
        comment="queued, running, succeeded, failed, cancelled, joined",
        existing_comment="queued, running, succeeded, failed",
    )
    for column in ("scope", "done", "changed", "last_product_key", "last_location_key"):
        op.drop_column("tasks", column)
    op.create_index(
        "tasks_queued_work_key", "tasks", ["work"], unique=True, postgresql_where=sa.text("state = 'queued'")
    )
    op.create_index(
        "tasks_running_work_key", "tasks", ["work"], unique=True, postgresql_where=sa.text("state = 'running'")
    )
    op.create_index(op.f("tasks_created_at_task_id_idx"), "tasks", ["created_at", "task_id"])
    op.create_index("tasks_ended_at_idx", "tasks", ["ended_at"], postgresql_where=sa.text("ended_at IS NOT NULL"))
    op.create_index("tasks_joined_idx", "tasks", ["joined"], postgresql_where=sa.text("joined IS NOT NULL"))


def downgrade() -> None:
    """Tasks with several scopes keep the first; the unfinished begin again; joined and cancelled ones have ended."""
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM tasks WHERE state IN ('queued', 'running') AND signal IS NOT NULL) THEN"
        " RAISE EXCEPTION 'let the tasks that set signals end first: the older schema cannot express them';"
        " END IF; END $$"
    )
    for index in (
        "tasks_joined_idx",
        "tasks_ended_at_idx",
        "tasks_created_at_task_id_idx",
        "tasks_running_work_key",
        "tasks_queued_work_key",
    ):
        op.drop_index(index, table_name="tasks")
    for column in ("done", "changed"):
        op.add_column("tasks", sa.Column(column, sa.BigInteger(), server_default="0", nullable=False))
    for column in ("last_product_key", "last_location_key"):
        op.add_column("tasks", sa.Column(column, sa.Integer(), server_default="0", nullable=False))
    op.add_column("tasks", sa.Column("scope", postgresql.JSONB()))
    op.execute(
        "UPDATE tasks SET scope = scopes -> 0, total = coalesce(total, 0),"
        " done = coalesce((SELECT sum(done) FROM task_parts p WHERE p.task_id = tasks.task_id), 0),"
        " changed = coalesce((SELECT sum(changed) FROM task_parts p WHERE p.task_id = tasks.task_id), 0),"
        " state = CASE state WHEN 'joined' THEN 'succeeded' WHEN 'cancelled' THEN 'failed' ELSE state END"
    )
    op.execute("UPDATE tasks SET state = 'queued', done = 0, changed = 0 WHERE state = 'running'")
    op.alter_column("tasks", "scope", nullable=False)
    op.alter_column("tasks", "total", nullable=False, comment=None, existing_comment="rows, once counted")
    op.alter_column("tasks", "state", comment="queued, running, succeeded, failed")
    for column in ("joined", "work", "cause", "signal", "scopes", "ended_at", "started_at"):
        op.drop_column("tasks", column)
    op.drop_table("task_batches")
    op.drop_table("task_parts")
