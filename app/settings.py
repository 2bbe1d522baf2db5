"""Every setting of every process: environment variables named PRICING_…, or a `.env` file."""

from pathlib import Path
from typing import Literal

from pydantic import AnyUrl, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.domain.client_address import parse_networks

Level = Literal["debug", "info", "warning", "error"]

KEY_SECRET_LENGTH = 32
"""What is shorter could be guessed."""


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
        description="Redis or Valkey that holds events and tasks; must not evict. Unset: the cache, if that is set; "
        "else `pricing up` embeds one.",
    )

    key_secret: SecretStr | None = Field(
        None,
        min_length=KEY_SECRET_LENGTH,
        description="What API keys are hashed with, the same for all processes; a change makes every key useless.",
    )
    key_secret_file: Path | None = Field(
        None, description="File that holds it instead. Both unset: `pricing up` makes one in its data folder."
    )
    open_reading: bool = Field(True, description="Whether whoever shows no API key may read prices and all else.")
    api_key: SecretStr | None = Field(
        None, description="The key that this program's own commands show to the API. Unset: that of `pricing up`."
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
        20_000,
        ge=1,
        le=1_000_000,
        description="Sheets per transaction of a recalculation; a quarter where most change.",
    )
    recalculation_part_size: int = Field(
        40_000,
        ge=1,
        description="Price sheets for which a recalculation gets another part, up to 16, for workers to share.",
    )
    retention_days: float = Field(
        30.0, gt=0, description="How long processed event ids and ended tasks are kept, in days."
    )

    telemetry: Literal["buffered", "synchronous", "off"] = Field(
        "buffered",
        description="What is kept of every request: buffered, answers do not wait for it, and up to 50 ms of records "
        "are lost with a process that is killed; synchronous, no answer leaves before its record is safe; off, "
        "nothing.",
    )
    telemetry_stream: str = Field("telemetry", description="Stream that holds records of requests.")
    telemetry_backlog_mb: int = Field(
        256, ge=1, description="With so much in it that stream takes no more, and records are spilled to disk, in MB."
    )
    telemetry_spill_dir: Path | None = Field(
        None, description="Folder for records that the stream does not take. Unset: telemetry, in PRICING_DATA."
    )
    telemetry_spill_mb: int = Field(
        1024, ge=1, description="What may be in that folder, in MB; beyond it the newest records are dropped."
    )
    trusted_proxies: str = Field(
        "",
        description="Networks whose X-Forwarded-For is believed, such as 10.0.0.0/8,192.0.2.7, separated by commas.",
    )
    victoriametrics_url: SecretStr | None = Field(
        None,
        description="VictoriaMetrics, where records of requests go for graphs, as http://127.0.0.1:8428. Unset: "
        "`pricing up` takes one that it finds there; else they are in PostgreSQL alone.",
    )
    telemetry_retention_days: float = Field(
        400.0,
        ge=1,
        description="How long the exact records of requests are kept, in days; 400 lets the bills of a whole year be "
        "checked a month after it has ended.",
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
    log_level: Level = Field("info", description="Least severe log level.")

    @field_validator("database_url", "cache_url", "broker_url", "victoriametrics_url")
    @classmethod
    def _has_a_known_scheme(cls, url: SecretStr | None, field: ValidationInfo) -> SecretStr | None:
        """A driver that is given another scheme may quote the whole URL, password included, in its error."""
        known = {"database_url": ("postgresql", "postgres"), "victoriametrics_url": ("http", "https")}
        schemes = known.get(field.field_name or "", ("redis", "rediss", "unix"))
        if url is not None and url.get_secret_value().partition("://")[0] not in schemes:
            raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return url

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: str) -> str:
        parse_networks(networks)
        return networks

    @property
    def telemetry_folder(self) -> Path:
        """Where records are spilled to."""
        return self.telemetry_spill_dir or self.data / "telemetry"

    @property
    def events_url(self) -> SecretStr | None:
        """The broker's URL, or the cache's where one server does both."""
        return self.broker_url or self.cache_url
