"""Writes the dashboards: `python deploy/grafana/generate.py`. A test holds the files against this, and every query
against a Prometheus that scrapes the running service."""

import json
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).with_name("dashboards")
READS = 'route=~"/api/v1/price|/api/v1/prices/batch|/api/v1/prices/{product_id}"'
DURATION = "pricing_http_request_duration_seconds"
BUDGET = 0.001


class Panel(NamedTuple):
    """A chart, or with `stat` one figure, of queries by what to call their series. `width` is in 24ths."""

    title: str
    unit: str
    queries: dict[str, str]
    meaning: str
    width: int = 8
    stat: bool = False
    limits: tuple[float, ...] = ()
    """From the first on the figure is amber, from the second on red; with one, red."""
    source: str = "prometheus"
    """Whom to ask: what has no place in Prometheus, such as a line for each key, is asked of `victoriametrics`."""


Dashboard = dict[str, list[Panel]]
"""Panels by the title of their row."""


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Per second; 0 where it was never counted."""
    summed = f"sum by ({by})" if by else "sum"
    return f"{summed} (rate({metric}{{{where}}}[$__rate_interval])) or vector(0)".replace("{}", "")


def quantile(q: float, histogram: str, by: str = "", where: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    inner = f"sum by ({labels}) (rate({histogram}_bucket{{{where}}}[$__rate_interval]))".replace("{}", "")
    return f"histogram_quantile({q}, {inner})"


def quantiles(histogram: str, where: str = "") -> dict[str, str]:
    return {f"p{100 * q:g}": quantile(q, histogram, where=where) for q in (0.5, 0.99, 0.999)}


def share(part: str, metric: str) -> str:
    return (
        f"sum(rate({metric}{{{part}}}[$__rate_interval])) / sum(rate({metric}[$__rate_interval])) "
        f"or 0 * sum(rate({metric}[$__rate_interval]))"
    )


def top_keys(where: str = "") -> str:
    """Requests a second, of VictoriaMetrics, which has a point for each."""
    points = f"count_over_time(pricing_request_sent_bytes{where}[$__rate_interval])"
    return f"topk(10, sum by (key_id) ({points}) / ($__rate_interval_ms / 1000))"


OVERVIEW: Dashboard = {
    "The promise: 99.9 % of price requests within 25 ms and without a 5xx": [
        Panel(
            "Kept, last 30 days", "percentunit", {"kept": "1 - pricing:bad_reads:ratio_rate30d"},
            "The share of good price requests. 0.999 is promised.", 6, stat=True,
        ),
        Panel(
            "Error budget left", "percentunit", {"left": f"1 - pricing:bad_reads:ratio_rate30d / {BUDGET}"},
            "What may still go wrong in these 30 days; below 0 the promise is broken.", 6, stat=True,
        ),
        Panel(
            "Burn rate", "none",
            {window: f"pricing:bad_reads:ratio_rate{window} / {BUDGET}" for window in ("5m", "1h", "6h", "3d")},
            "How many times faster than allowed the budget is being used. Alerts: 14.4 (1 h and 5 min), 6 (6 h and "
            "30 min), 3 (1 d and 2 h), 1 (3 d and 6 h).", 12,
        ),
    ],
    "Now": [
        Panel("Price requests", "reqps", {"requests": rate(f"{DURATION}_count", where=READS)}, "Per second.", 4, True),
        Panel("Slow or failed", "percentunit", {"bad": "pricing:bad_reads:ratio_rate5m"}, "Of the last 5 minutes.",
              4, True, limits=(0.001, 0.01)),
        Panel("Oldest unapplied event", "s", {"age": "max(pricing_oldest_unapplied_event_age_seconds)"},
              "Prices lag behind the market by this much.", 4, True, limits=(5, 30)),
        Panel("Dead letters", "none", {"letters": "max(pricing_dead_letters)"},
              "Events that somebody has to decide on.", 4, True, limits=(1, 100)),
        Panel("Unaccounted events", "none", {
            "events": 'max(pricing_event_ledger{entry="accepted"}) '
            '- sum(max by (entry) (pricing_event_ledger{entry!="accepted"}))'
        }, "Accepted, and neither waiting nor applied nor set aside: always 0.", 4, True, limits=(1,)),
        Panel("Open breakers", "none", {
            "background": "count(pricing_breaker_state > 0) or vector(0)",
            "readers": "count(pricing_reader_breaker_open > 0) or vector(0)",
        }, "What is held back because something fails.", 4, True, limits=(1,)),
    ],
    "Traffic": [
        Panel("Requests by status", "reqps", {"{{status}}": rate(f"{DURATION}_count", "status")}, "All routes."),
        Panel("Requests by route", "reqps", {"{{method}} {{route}}": rate(f"{DURATION}_count", "method, route")},
              "All statuses."),
        Panel("Latency of prices", "s", quantiles(DURATION, READS), "From arrival to the last byte, in the API."),
    ],
    "Callers": [
        Panel("Refused", "reqps", {
            "{{reason}}": rate("pricing_requests_refused_total", "reason"),
        }, "unauthenticated: no key where one is needed, or one that is no good; forbidden: a scope is missing; "
           "rate_limited: the key's limit is reached."),
        Panel("API keys, limits without Redis", "none", {
            "keys": "max(pricing_api_keys_known)", "local draws per s": rate("pricing_rate_limits_local_total"),
        }, "Keys that an API process knows, ended ones among them; limits that each process keeps alone, for Redis is "
           "away."),
        Panel("Age of what is known of keys", "s", {"age": "max(pricing_api_keys_age_seconds)"},
              "Of the API process that is worst off. Above 2 s a revocation may not be known yet."),
    ],
    "Processes": [
        Panel("Living processes", "none", {"{{kind}}": "sum by (kind) (pricing_processes)"},
              "API workers, listeners, and Celery's children that take events (worker) and recalculations (jobs)."),
        Panel("What runs", "none", {"{{version}} {{revision}}, Python {{python}}": "pricing_build_info"},
              "More than one line: a roll-out is under way."),
        Panel("Access records lost", "cps", {"records": rate("pricing_access_records_dropped_total")},
              "The log on stderr does not take them in time; metrics count them all the same."),
    ],
}  # fmt: skip

READING: Dashboard = {
    "Where prices come from": [
        Panel("Quotes by source", "cps", {"{{source}}": rate("pricing_quotes_total", "source")},
              "near_cache: the API process' memory; stale: the last one known; unknown: no such price.", 12),
        Panel("Hit ratio by layer", "percentunit", {
            "near cache": share('source="near_cache"', "pricing_quotes_total"),
            "Redis or nearer": share('source=~"near_cache|cache"', "pricing_quotes_total"),
            "stale": share('source="stale"', "pricing_quotes_total"),
        }, "Of all quotes.", 12),
    ],
    "Near cache": [
        Panel("Price sheets at hand", "none", {"sheets": "sum(pricing_near_cache_entries)"},
              "In all API processes. The limit is PRICING_NEAR_CACHE_ENTRIES each."),
        Panel("Processes that distrust it", "none", {"processes": "sum(pricing_near_cache_bypassed)"},
              "They do not hear the invalidation feed, and ask Redis for each price."),
        Panel("Distrusted or cleared", "cps", {"resets": rate("pricing_near_cache_resets_total")},
              "Each time all that a process had at hand is read anew."),
    ],
    "Latency": [
        Panel("One price", "s", quantiles(DURATION, 'route="/api/v1/price"'), "POST /api/v1/price."),
        Panel("Many prices", "s", quantiles(DURATION, 'route="/api/v1/prices/batch"'), "POST /api/v1/prices/batch."),
        Panel("Slow or failed", "percentunit", {
            "5 min": "pricing:bad_reads:ratio_rate5m", "1 h": "pricing:bad_reads:ratio_rate1h",
        }, "Price requests that took more than 25 ms or were answered with a 5xx."),
    ],
    "Stores of the readers": [
        Panel("Redis' answers, p99", "s", {"{{call}}": quantile(0.99, "pricing_cache_call_seconds", "call")},
              "get: prices; lease and fill: one process loads for all; put: workers write.", 12),
        Panel("Processes that leave a store alone", "none",
              {"{{store}}": "sum by (store) (pricing_reader_breaker_open)"},
              "After five failures in a row, for a second at a time.", 12),
    ],
}  # fmt: skip

EVENTS: Dashboard = {
    "From the event to the price": [
        Panel("Events in", "cps", {"{{type}} ({{source}})": rate("pricing_events_published_total", "type, source")},
              "New ones, by how they came."),
        Panel("Events out", "cps", {"{{status}}": rate("pricing_events_processed_total", "status")},
              "applied; repeated: applied before; failed: to be tried again; dead: set aside."),
        Panel("From accepted to readable", "s", quantiles("pricing_event_to_price_seconds"),
              "Of events that were applied: from the 202 to the new price in the cache."),
    ],
    "What waits": [
        Panel("Oldest unapplied event, oldest due boundary", "s", {
            "event": "max(pricing_oldest_unapplied_event_age_seconds)",
            "boundary": "max(pricing_oldest_due_boundary_age_seconds)",
        }, "A boundary is the begin or end of a promotion whose prices are still to be recomputed."),
        Panel("Lag of the groups", "none", {
            "{{group}} unread": "max by (group) (pricing_stream_lag)",
            "{{group}} pending": "max by (group) (pricing_stream_pending)",
            "limit": "max(pricing_backlog_limit)",
        }, "Unread, and read but not applied. At the limit new events are refused."),
        Panel("Stream, queues", "none", {
            "stream": "max(pricing_stream_length)", "queue {{queue}}": "max by (queue) (pricing_task_queue_length)",
        }, "Entries in the stream (applied ones are trimmed every few seconds), tasks that wait for a worker."),
        Panel("The books", "none", {"{{entry}}": "max by (entry) (pricing_event_ledger)"},
              "accepted is the sum of the others.", 12),
        Panel("Refused, set aside, dead letters", "none", {
            "refused per s": rate("pricing_events_refused_total"),
            "dead letters": "max(pricing_dead_letters)",
            "{{how}} per s": rate("pricing_dead_letters_handled_total", "how"),
        }, "Refused: the backlog was full, senders come again.", 12),
    ],
    "Applying": [
        Panel("Batch", "s", quantiles("pricing_event_batch_seconds"),
              "Applying and acknowledging one batch of an inbox."),
        Panel("Events per batch", "none", {
            "events": "sum(rate(pricing_events_processed_total[$__rate_interval])) "
            "/ sum(rate(pricing_event_batch_seconds_count[$__rate_interval]))",
        }, "Under load many are applied in one transaction."),
        Panel("Events by handler", "cps", {
            "{{type}} by {{handler}}": rate("pricing_events_processed_total", "type, handler"),
        }, "apply_events: repriced at once; recalculate: so many rows that a recalculation does it."),
        Panel("Into inboxes", "cps", {"{{how}}": rate("pricing_events_received_total", "how")},
              "reclaimed: another listener had read them and died.", 24),
    ],
    "Jobs": [
        Panel("Recalculation", "cps", {"{{outcome}}": rate("pricing_recalculation_sheets_total", "outcome")},
              "Price sheets per second."),
        Panel("New price sheets", "cps", {"{{cause}}": rate("pricing_sheets_stored_total", "cause")},
              "Versions stored, by what led to them."),
        Panel("Tasks by outcome", "cps",
              {"{{task}} {{outcome}}": rate("pricing_task_duration_seconds_count", "task, outcome")},
              "held_back: a breaker was open."),
        Panel("Run time, p99", "s", {"{{task}}": quantile(0.99, "pricing_task_duration_seconds", "task")}, "Of tasks."),
        Panel("Queue wait, p99", "s", {"{{task}}": quantile(0.99, "pricing_task_wait_seconds", "task")},
              "From queueing a task to its start."),
        Panel("Repeats by reason", "cps", {"{{task}} {{reason}}": rate("pricing_task_retries_total", "task, reason")},
              "With full jitter, up to 30 s apart."),
    ],
    "Locks and breakers": [
        Panel("Wait, p99", "s", {"{{kind}}": quantile(0.99, "pricing_lock_wait_seconds", "kind")},
              "From asking for a scope's work to the round that does it."),
        Panel("Hold, p99", "s", {"{{kind}}": quantile(0.99, "pricing_lock_hold_seconds", "kind")}, "Of a lock."),
        Panel("Renewed, lost, left to the holder", "cps", {
            "renewed": rate("pricing_lock_renewals_total"), "lost": rate("pricing_lock_lost_total"),
            "left to the holder": rate("pricing_lock_left_to_holder_total"),
        }, "A run that loses its lock stops at its next batch."),
        Panel("Breakers", "none", {"{{breaker}}": "max by (breaker) (pricing_breaker_state)"},
              "0 closed, 1 half open (one try at a time), 2 open.", 24),
    ],
}  # fmt: skip

STORES: Dashboard = {
    "PostgreSQL": [
        Panel("Transactions", "cps", {
            "{{outcome}}": rate("pricing_database_transaction_seconds_count", "outcome"),
        }, "Of all processes."),
        Panel("Transaction", "s", quantiles("pricing_database_transaction_seconds"), "From wanting one to its end."),
        Panel("Wait for a connection", "s", quantiles("pricing_database_wait_seconds"),
              "Long: the pools are too small (PRICING_DATABASE_POOL_SIZE), or PostgreSQL is away."),
        Panel("Connections", "none", {
            "{{state}}": "sum by (state) (pricing_database_connections)",
            "limit": "sum(pricing_database_connections_limit)",
        }, "Of all processes together.", 24),
    ],
    "Redis": [
        Panel("Calls", "cps", {"{{call}}": rate("pricing_cache_call_seconds_count", "call")}, "To the cache."),
        Panel("Answers, p99", "s", {"{{call}}": quantile(0.99, "pricing_cache_call_seconds", "call")},
              "A put writes up to 500 price sheets."),
        Panel("Connections", "none", {"{{role}} {{state}}": "sum by (role, state) (pricing_redis_connections)"},
              "Of all processes; Celery's own are not among them."),
    ],
    "What keeps work from them": [
        Panel("Shared breakers", "none", {
            "{{breaker}}": 'max by (breaker) (pricing_breaker_state{breaker=~"postgresql|cache"})',
        }, "Background work: 0 closed, 1 half open, 2 open.", 12),
        Panel("Readers' breakers", "none", {"{{store}}": "sum by (store) (pricing_reader_breaker_open)"},
              "API processes that leave a store alone.", 12),
    ],
}  # fmt: skip

TELEMETRY: Dashboard = {
    "From the API into the stream": [
        Panel("Records", "cps", {
            "requests answered": rate("pricing_telemetry_noted_total"),
            "into the stream": rate("pricing_telemetry_published_total", where='came_from="memory"'),
            "onto the disk": rate("pricing_telemetry_spilled_total"),
            "from the disk into the stream": rate("pricing_telemetry_published_total", where='came_from="spill"'),
            "taken over from processes that ended": rate("pricing_telemetry_adopted_total"),
        }, "Every request that is answered leaves a record. While the stream is away or full they go to disk.", 12),
        Panel("Lost", "cps", {"{{reason}}": rate("pricing_telemetry_dropped_total", "reason")},
              "They show as gaps: no room in memory or on disk, damaged there, or a defect.", 6),
        Panel("Unaccounted", "none", {"records": "sum(pricing_telemetry_unaccounted)"},
              "Neither published, spilled, dropped nor waiting: always 0.", 6, stat=True, limits=(1,)),
        Panel("Waiting", "none", {"{{where}}": "sum by (where) (pricing_telemetry_waiting)"},
              "In memory for 50 ms at most; on disk until the stream takes them.", 12),
        Panel("On disk", "bytes", {
            "spilled": "max(pricing_telemetry_spill_bytes)", "limit": "max(pricing_telemetry_spill_limit_bytes)",
        }, "Beyond the limit the newest records are dropped.", 12),
    ],
    "From the stream into the sinks": [
        Panel("Records delivered", "cps", {
            "{{sink}}": "max by (sink) (deriv(pricing_telemetry_delivered_records[$__rate_interval]))"
        }, "Per second; a sink has taken and acknowledged them."),
        Panel("Oldest unwritten batch", "s", {
            "{{sink}}": "max by (sink) (pricing_oldest_unwritten_record_age_seconds)",
        }, "Bills (postgresql) and graphs (victoriametrics) lag behind by this much."),
        Panel("Batches that wait or are set aside", "none", {
            "{{entry}} for {{sink}}": 'max by (sink, entry) (pricing_telemetry_ledger{entry=~"pending|dead"})',
        }, "pending: to be read, or to be acknowledged; dead: a sink could not take them (`pricing telemetry dlq`)."),
        Panel("One write, p99", "s", {"{{sink}}": quantile(0.99, "pricing_telemetry_write_seconds", "sink")},
              "Of up to 32 batches."),
        Panel("Rows in PostgreSQL", "cps", {
            "written": rate("pricing_records_written_total"), "repeated": rate("pricing_records_repeated_total"),
            "placed where they arrived": rate("pricing_records_misdated_total"),
        }, "Repeated: they came again, after a crash between a write and its acknowledgement; nothing changed. Placed "
           "where they arrived: the clock of a process is wrong."),
        Panel("Batches trimmed", "cps", {"batches": rate("pricing_telemetry_trimmed_total")},
              "Out of the stream, since every sink had acknowledged them."),
        Panel("Requests without a record", "none", {"missing": "max(pricing_requests_without_record)"},
              "Answered in the last day and 10 minutes ago at least; `pricing telemetry gaps` tells which.", 12, True,
              limits=(1,)),
        Panel("Unaccounted batches", "none", {
            "{{sink}}": 'max by (sink) (pricing_telemetry_ledger{entry="accepted"}) '
            '- sum by (sink) (max by (sink, entry) (pricing_telemetry_ledger{entry!="accepted"}))'
        }, "In the stream, and neither waiting nor delivered nor set aside: always 0.", 12, True, limits=(1,)),
    ],
    "Who asks, by VictoriaMetrics": [
        Panel("Requests by key, the ten busiest", "reqps", {"{{key_id}}": top_keys()},
              "No key: a reader without one.", source="victoriametrics"),
        Panel("Answered with 429, by key", "reqps", {"{{key_id}}": top_keys('{status="429"}')},
              "They reach their limit; `pricing keys list` tells what it is.", source="victoriametrics"),
        Panel("Latency by user, the ten slowest, p99", "s", {
            "{{user_id}}": "topk(10, max by (user_id) (quantile_over_time(0.99, "
            "pricing_request_latency_seconds[$__rate_interval])))",
        }, "As the client says who it is (X-User-ID).", source="victoriametrics"),
    ],
}  # fmt: skip

DASHBOARDS = {
    "overview": ("Pricing: overview", OVERVIEW),
    "reading": ("Pricing: reading prices", READING),
    "events": ("Pricing: events and jobs", EVENTS),
    "stores": ("Pricing: stores", STORES),
    "telemetry": ("Pricing: request telemetry", TELEMETRY),
}


def written(name: str) -> str:
    """A dashboard as Grafana reads it."""
    title, rows = DASHBOARDS[name]
    panels: list[dict[str, Any]] = []
    top = 0
    for row, its in rows.items():
        panels.append({"type": "row", "title": row, "collapsed": False, "gridPos": _place(0, top, 24, 1), "panels": []})
        top += 1
        left, height = 0, 4 if its[0].stat and all(panel.width < 12 for panel in its if panel.stat) else 8
        for panel in its:
            if left + panel.width > 24:
                left, top = 0, top + height
            panels.append(_panel(panel, _place(left, top, panel.width, height)))
            left += panel.width
        top += height
    dashboard = {
        "uid": f"pricing-{name}",
        "title": title,
        "tags": ["pricing"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["pricing"], "title": "Pricing", "asDropdown": True}],
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, 1)],
    }
    return json.dumps(dashboard, indent=1) + "\n"


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    colours = ("orange", "red") if len(panel.limits) > 1 else ("red",)
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": limit} for colour, limit in zip(colours, panel.limits, strict=False)]
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"]}}
    if not panel.stat:
        defaults["min"] = 0
        options = {"tooltip": {"mode": "multi", "sort": "desc"}}
    return {
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "gridPos": place,
        "datasource": {"type": "prometheus", "uid": panel.source},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(written(name))
