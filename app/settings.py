"""Every setting of every process: environment variables named PRICING_…, or a `.env` file."""

from pathlib import Path
from typing import Literal

from pydantic import AnyUrl, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Built once per process and frozen. Units are in the names; defaults suit one machine."""

    model_config = SettingsConfigDict(
        env_prefix="PRICING_", env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True
    )

    database_url: SecretStr | None = Field(
        None, description="PostgreSQL, as postgresql://user:password@host/name. Unset: `pricing up` embeds one."
    )
    cache_url: SecretStr | None = Field(
        None, description="Redis ≥ 7 or Valkey ≥ 8 that caches prices; may evict. Unset: `pricing up` embeds one."
    )
    broker_url: SecretStr | None = Field(
        None,
        description="Redis or Valkey that holds events and tasks; must not evict. Unset: the same as the cache.",
    )

    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port that the API listens on.")
    workers: int = Field(2, ge=1, le=256, description="Gunicorn worker processes.")
    worker_concurrency: int = Field(2, ge=1, le=256, description="Celery child processes.")
    data: Path = Field(Path(".pricing"), description="Folder for the embedded stores' data and for logs.")
    catalog: str = Field("sample", description="What an empty database is filled with: sample, none, or a path.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Largest request body that is read, in bytes.")

    max_bulk_bytes: int = Field(
        5_242_880, ge=1024, description="Largest body of POST /api/v1/events that is read, in bytes."
    )

    cache_ttl_s: int = Field(3600, ge=1, description="How long a cached price sheet is fresh, in seconds.")
    stale_ttl_s: int = Field(
        86_400, ge=0, description="How much longer it stays, to be served when nothing newer can be had, in seconds."
    )
    near_cache_entries: int = Field(100_000, ge=0, description="Price sheets that each API process keeps at hand.")
    near_cache_silence_s: float = Field(
        2.0, gt=0, description="Silence of the invalidation feed after which they are not trusted, in seconds."
    )
    unknown_ttl_s: int = Field(30, ge=1, description="How long an unknown product is remembered, in seconds.")
    store_timeout_s: float = Field(
        2.0, gt=0, description="Longest wait for an answer of Redis, and of the API for one of PostgreSQL, in seconds."
    )
    database_pool_size: int = Field(5, ge=1, description="PostgreSQL connections per process.")
    idempotency_ttl_s: int = Field(86_400, ge=60, description="How long a published event id is remembered, in s.")

    event_channel: str = Field("market_events", description="Pub/Sub channel for events and the doorbell.")
    event_stream: str = Field("events", description="Stream that holds accepted events.")
    dead_letter_stream: str = Field("events:dead", description="Stream that holds events nobody could apply.")
    event_group: str = Field("repricing", description="Consumer group that applies events.")
    read_count: int = Field(256, ge=1, le=10_000, description="Most stream entries that one read takes.")
    poll_interval_s: float = Field(0.5, gt=0, description="Longest time between looks at the stream, in seconds.")
    reclaim_idle_s: float = Field(
        10.0, gt=0, description="After this another listener takes over what one has read, in seconds."
    )
    max_attempts: int = Field(5, ge=1, description="Failed attempts at one event before it is a dead letter.")
    max_backlog_events: int = Field(
        100_000, ge=1, description="New events are refused while so many wait to be applied."
    )
    replays_per_s: int = Field(
        50, ge=1, le=10_000, description="Most dead letters that are replayed in a second, by all together."
    )
    lock_ttl_s: float = Field(
        10.0, gt=0, description="How long a lock outlives the last renewal of a holder that died, in seconds."
    )
    recalculation_batch_size: int = Field(
        20_000, ge=1, le=1_000_000, description="Price sheets per transaction of a recalculation."
    )
    recalculation_part_size: int = Field(
        40_000,
        ge=1,
        description="Price sheets for which a recalculation gets another part, up to 16, for workers to share.",
    )
    retention_days: float = Field(
        30.0, gt=0, description="How long processed event ids and ended tasks are kept, in days."
    )

    otlp_endpoint: AnyUrl | None = Field(
        None, description="Where spans go, OTLP over HTTP, such as http://127.0.0.1:4318. Unset: nowhere."
    )
    trace_sample_ratio: float = Field(0.01, ge=0, le=1, description="Share of new traces that are kept.")
    metrics_dir: Path | None = Field(None, description="Folder (tmpfs) where processes share metrics.")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port where Prometheus finds the metrics of all processes. Unset: only at the API's /metrics.",
    )
    revision: str | None = Field(None, description="What the program was built from, for pricing_build_info.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log level.")

    @field_validator("database_url", "cache_url", "broker_url")
    @classmethod
    def _has_a_known_scheme(cls, url: SecretStr | None, field: ValidationInfo) -> SecretStr | None:
        """A driver that is given another scheme may quote the whole URL, password included, in its error."""
        schemes = ("postgresql", "postgres") if field.field_name == "database_url" else ("redis", "rediss", "unix")
        if url is not None and url.get_secret_value().partition("://")[0] not in schemes:
            raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return url

    @property
    def events_url(self) -> SecretStr | None:
        """The broker's URL, or the cache's where one server does both."""
        return self.broker_url or self.cache_url
