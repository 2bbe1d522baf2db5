"""The tables. Amounts are minor units, rates basis points; `*_key` are surrogate keys that never leave."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

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
    sa.Column(
        "stored_product",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="the last row stored; where that is further, what lies between may not be cached",
    ),
    sa.Column("stored_location", sa.Integer, nullable=False, server_default="0"),
    sa.Column("until_product", sa.Integer, nullable=False, comment="its last row"),
    sa.Column("until_location", sa.Integer, nullable=False),
    sa.Column("done", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("changed", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0", comment="turns since it got further"),
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

consumers = sa.Table(
    "consumers",
    metadata,
    sa.Column("consumer_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    _instant("created_at", nullable=False, server_default=_NOW),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("consumer_id", sa.ForeignKey("consumers.consumer_id"), nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False, unique=True, comment="keyed; of the whole key"),
    sa.Column("mark", sa.LargeBinary, nullable=False, comment="of the secret that it is hashed with"),
    sa.Column("scopes", ARRAY(sa.Text), nullable=False, comment="read, publish, admin"),
    sa.Column("limit_requests", sa.Integer),
    sa.Column("limit_window_s", sa.Integer),
    _instant("created_at", nullable=False, server_default=_NOW),
    _instant("expires_at"),
    _instant("revoked_at"),
    sa.Column("rotated_from", sa.ForeignKey("api_keys.key_id")),
    sa.Column("change", sa.BigInteger, nullable=False, comment="the last one made to it, as key_changes counts"),
    sa.CheckConstraint("(limit_requests IS NULL) = (limit_window_s IS NULL)", name="limit"),
    sa.Index(None, "consumer_id", "key_id"),
    sa.Index(None, "change"),
)

key_changes = sa.Table(
    "key_changes",
    metadata,
    sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("change", sa.BigInteger, nullable=False, comment="counts the changes of api_keys, in commit order"),
    sa.CheckConstraint("single", name="single"),
)

record_sources = sa.Table(
    "record_sources",
    metadata,
    _key("source_key"),
    sa.Column("source", sa.Text, nullable=False, unique=True, comment="a process that answered requests"),
    sa.Column("process_id", sa.BigInteger, comment="the operating system's; null where only its end is known"),
    sa.Column("ended_sequence", sa.BigInteger, comment="the last number that it gave; null while it may give more"),
    sa.Column(
        "forgotten_sequence",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="up to here it is no longer known which requests were kept: they are older than the retention",
    ),
    _instant("heard_at", nullable=False, comment="when its last entry came into the stream"),
)

record_ranges = sa.Table(
    "record_ranges",
    metadata,
    sa.Column("source_key", sa.ForeignKey("record_sources.source_key", ondelete="CASCADE"), primary_key=True),
    sa.Column("first", sa.BigInteger, primary_key=True),
    sa.Column("last", sa.BigInteger, nullable=False),
    _instant("earliest_at", nullable=False),
    _instant("latest_at", nullable=False),
    comment="what is in request_records; ranges that touch are one, so what is between two is missing",
    # A source's newest range grows with every batch: there is room for its next version in its page.
    postgresql_with={"fillfactor": 50},
)

request_records = sa.Table(
    "request_records",
    metadata,
    _instant("started_at", nullable=False, comment="when it arrived in the stream, where its clock cannot be right"),
    sa.Column("latency_ns", sa.BigInteger, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False, comment="the source's number for it"),
    sa.Column("sent_bytes", sa.BigInteger, nullable=False),
    sa.Column("source_key", sa.Integer, nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("sampled", sa.Boolean, nullable=False),
    sa.Column("trace_id", sa.Uuid),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("client", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False, comment="empty where there was none; so is user_id"),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Index(None, "key_id", "started_at"),
    comment="one row per answered request, exactly; a partition per UTC day, in no order that keys would give",
    postgresql_partition_by="RANGE (started_at)",
)
