"""The tables. Amounts are minor units, rates basis points; `*_key` are surrogate keys that never leave."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

_NOW = sa.func.now()


def _instant(name: str, **kwargs: object) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), **kwargs)  # type: ignore[arg-type]


def _key(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, sa.Identity(always=True), primary_key=True)


def _names(table: str, key: str) -> sa.Table:
    return sa.Table(table, metadata, _key(key), sa.Column("name", sa.Text, nullable=False, unique=True))


departments = _names("departments", "department_key")
categories = _names("categories", "category_key")

products = sa.Table(
    "products",
    metadata,
    _key("product_key"),
    sa.Column("product_id", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("department_key", sa.ForeignKey("departments.department_key")),
    sa.Column("category_key", sa.ForeignKey("categories.category_key")),
    sa.Column("brand", sa.Text),
    sa.Column("size", sa.Text),
    sa.Index(None, "category_key", "product_key"),
    sa.Index(None, "department_key", "product_key"),
)

locations = sa.Table(
    "locations",
    metadata,
    _key("location_key"),
    sa.Column("location", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("currency", sa.CHAR(3), nullable=False),
    sa.Column("currency_number", sa.SmallInteger, nullable=False, comment="ISO 4217 numeric"),
    sa.Column("time_zone", sa.Text, nullable=False, comment="IANA"),
)


def _row_keys() -> tuple[sa.Column[int], sa.Column[int]]:
    # No foreign keys: these tables are written by the hundred thousand from keys that a join has just read,
    # and neither products nor locations are ever deleted.
    return sa.Column("product_key", sa.Integer, primary_key=True), sa.Column(
        "location_key", sa.Integer, primary_key=True
    )


# Every "position" orders what was said about one thing: an event's stream id (ms << 20 | sequence), or, for
# a change that came by another way, its time as the same number. A lower one never overwrites a higher one.
list_prices = sa.Table(
    "list_prices",
    metadata,
    *_row_keys(),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Index(None, "location_key", "product_key"),
)

SIGNALS = ("cost", "competitor_price", "demand_bp", "stock")

signals = sa.Table(
    "signals",
    metadata,
    *_row_keys(),
    *(
        column
        for signal in SIGNALS
        for column in (sa.Column(signal, sa.BigInteger), sa.Column(f"{signal}_position", sa.BigInteger))
    ),
)


def _scope() -> tuple[sa.Column[int] | sa.Column[str], ...]:
    return (
        sa.Column("product_key", sa.ForeignKey("products.product_key")),
        sa.Column("category_key", sa.ForeignKey("categories.category_key")),
        sa.Column("department_key", sa.ForeignKey("departments.department_key")),
        sa.Column("location_key", sa.ForeignKey("locations.location_key")),
        sa.Column("currency", sa.CHAR(3), comment="of the amounts; the location's where there is one"),
    )


policies = sa.Table(
    "policies",
    metadata,
    _key("policy_key"),
    sa.Column("policy_id", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    *_scope(),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("rate_bp", sa.Integer, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("threshold", sa.BigInteger, nullable=False),
    sa.Column("min_margin_bp", sa.Integer),
    sa.Column("floor", sa.BigInteger),
    sa.Column("ceiling", sa.BigInteger),
    sa.Column("max_change_bp", sa.Integer),
    sa.Column("rounding_increment", sa.BigInteger, nullable=False),
    sa.Column("rounding_ending", sa.BigInteger, nullable=False),
    sa.Column("line_rounding", sa.Boolean, nullable=False),
    sa.Column("tiers", JSONB, nullable=False, comment="[[min_quantity, off_bp], …]"),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("removed", sa.Boolean, nullable=False, server_default=sa.false()),
)
sa.Index(
    "policies_one_per_scope_key",
    policies.c.product_key,
    policies.c.category_key,
    policies.c.department_key,
    policies.c.location_key,
    policies.c.currency,
    unique=True,
    postgresql_nulls_not_distinct=True,
    postgresql_where=sa.text("NOT removed"),
)

promotions = sa.Table(
    "promotions",
    metadata,
    _key("promotion_key"),
    sa.Column("promotion_id", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    *_scope(),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.Column("segment", sa.SmallInteger, nullable=False),
    sa.Column("stackable", sa.Boolean, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    _instant("starts_at"),
    _instant("ends_at"),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("removed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("promotions_product_key_idx", "product_key", "location_key", postgresql_where=sa.text("NOT removed")),
    sa.Index(
        "promotions_wide_idx",
        "promotion_key",
        postgresql_where=sa.text("product_key IS NULL AND NOT removed"),
    ),
)

rule_removals = sa.Table(
    "rule_removals",
    metadata,
    sa.Column("rule", sa.Text, primary_key=True, comment="policies/<id> or promotions/<id>, unknown when removed"),
    sa.Column("position", sa.BigInteger, nullable=False),
)

price_sheets = sa.Table(
    "price_sheets",
    metadata,
    *_row_keys(),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.BigInteger, nullable=False, comment="hash of all that the sheet says"),
    _instant("valid_until"),
    sa.Index("price_sheets_valid_until_idx", "valid_until", postgresql_where=sa.text("valid_until IS NOT NULL")),
    # All rows may change at once: their new versions then find room in their own pages, and no index is touched.
    postgresql_with={"fillfactor": 45},
)

price_history = sa.Table(
    "price_history",
    metadata,
    *_row_keys(),
    sa.Column("version", sa.BigInteger, primary_key=True),
    _instant("computed_at", nullable=False),
    sa.Column("list_price", sa.BigInteger, nullable=False),
    sa.Column("base_price", sa.BigInteger, nullable=False),
    sa.Column("everyone_price", sa.BigInteger, nullable=False),
    sa.Column("member_price", sa.BigInteger, nullable=False),
    sa.Column("cause", sa.Text, nullable=False, comment="event:<id>, import:<name>, boundary, …"),
    sa.Column("sheet", sa.LargeBinary, nullable=False, comment="domain.sheet.PriceSheet as JSON"),
)

processed_events = sa.Table(
    "processed_events",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("scopes", JSONB, nullable=False, server_default="[]", comment="the rows it concerned: RowScope, …"),
    _instant("processed_at", nullable=False, server_default=_NOW),
    sa.Index(None, "processed_at"),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("task_id", sa.Text, primary_key=True, comment="the id of the event that asked for it"),
    sa.Column("scopes", JSONB, nullable=False, comment="the rows it is about, in any of these: RowScope, …"),
    sa.Column("signal", JSONB, comment="what it sets before it reprices: SignalChange"),
    sa.Column("cause", sa.Text, nullable=False, comment="what history shows: event:<id> or import:<name>"),
    sa.Column("work", sa.Text, comment="digest of what it does; null where nobody else may join it"),
    sa.Column("state", sa.Text, nullable=False, comment="queued, running, succeeded, failed, cancelled, joined"),
    sa.Column("joined", sa.ForeignKey("tasks.task_id", ondelete="CASCADE"), comment="the task that does this work"),
    sa.Column("total", sa.BigInteger, comment="rows, once counted"),
    sa.Column("traceparent", sa.Text),
    sa.Column("error", sa.Text),
    _instant("created_at", nullable=False, server_default=_NOW),
    _instant("updated_at", nullable=False, server_default=_NOW),
    _instant("started_at"),
    _instant("ended_at"),
    sa.Index("tasks_queued_work_key", "work", unique=True, postgresql_where=sa.text("state = 'queued'")),
    sa.Index("tasks_running_work_key", "work", unique=True, postgresql_where=sa.text("state = 'running'")),
    sa.Index("tasks_unfinished_idx", "updated_at", postgresql_where=sa.text("state IN ('queued', 'running')")),
    sa.Index(None, "created_at", "task_id"),
    sa.Index("tasks_ended_at_idx", "ended_at", postgresql_where=sa.text("ended_at IS NOT NULL")),
    sa.Index("tasks_joined_idx", "joined", postgresql_where=sa.text("joined IS NOT NULL")),
)


def _task_id() -> sa.Column[str]:
    return sa.Column("task_id", sa.ForeignKey("tasks.task_id", ondelete="CASCADE"), nullable=False)


task_parts = sa.Table(
    "task_parts",
    metadata,
    _task_id(),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False, comment="queued, running, succeeded, failed"),
    sa.Column("after_product", sa.Integer, nullable=False, comment="the last row done; at first, the part's start"),
    sa.Column("after_location", sa.Integer, nullable=False),
    sa.Column("until_product", sa.Integer, nullable=False, comment="its last row"),
    sa.Column("until_location", sa.Integer, nullable=False),
    sa.Column("done", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("changed", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0", comment="turns since it got further"),
    sa.Column("orderly", sa.Boolean, nullable=False, server_default=sa.true(), comment="all that is stored is cached"),
    sa.Column("token", sa.BigInteger, nullable=False, server_default="0", comment="of whoever may write: the fence"),
    sa.Column("error", sa.Text),
    _instant("updated_at", nullable=False, server_default=_NOW),
    sa.PrimaryKeyConstraint("task_id", "part"),
    sa.Index("task_parts_open_idx", "updated_at", postgresql_where=sa.text("state IN ('queued', 'running')")),
)

task_batches = sa.Table(
    "task_batches",
    metadata,
    _task_id(),
    _instant("noted_at", nullable=False, server_default=_NOW),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Index(None, "task_id", "noted_at"),
    comment="of tasks that run: how fast they are",
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("event", sa.LargeBinary, nullable=False),
    _instant("created_at", nullable=False, server_default=_NOW),
)

fences = sa.Table(
    "fences",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("token", sa.BigInteger, nullable=False),
)
