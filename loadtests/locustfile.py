"""Load on a running system: locust -f loadtests/locustfile.py --scenario NAME. README.md says how."""

import json
import logging
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import gevent
import httpx
from gevent.event import AsyncResult
from locust import LoadTestShape, events, stats
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from app.local.running import key_headers
from app.settings import Settings
from loadtests import limits, users
from loadtests.checks import Freshness
from loadtests.limits import BadLimits, breaches, limits_of
from loadtests.popularity import BEST_SELLERS, Draw, Row, popularity, real_catalogue
from loadtests.record import READS, Record, bucket
from loadtests.result import result, spoken
from loadtests.scenarios import SCENARIOS
from loadtests.shapes import SHAPES, share_at
from loadtests.users import Reader, World

__all__ = ["Reader"]  # Locust looks for users; those of the scenario take the reader's place

HOST, USERS, RUN_TIME_S = "http://127.0.0.1:8000", 40, 110
PROCESSES = 16
"""Locust processes, on all machines, whose markets never change each other's prices."""
WATCHED = 10
"""One row in so many is changed by markets alone."""
COLD_WITHIN_S = 5.0

logging.getLogger("httpx").setLevel(logging.WARNING)  # Locust shows what others log, too
stats.bucket_response_time = bucket  # Locust rounds to whole ms, and most quotes take less than one


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """The web page shows them; `python -m loadtests --help` tells of them."""
    ours = parser.add_argument_group("Pricing")
    ours.add_argument("--scenario", choices=list(SCENARIOS), default="steady", help="what is played")
    ours.add_argument(
        "--shape", choices=["", *SHAPES], default="", help="how many users when; each scenario has its own"
    )
    ours.add_argument("--rate", type=float, default=10.0, help="quotes a second that each reader asks for; 0: no pause")
    ours.add_argument("--events", type=float, default=300.0, help="events a second of the storm")
    ours.add_argument("--catalog", choices=["auto", "sample", "completejourney"], default="auto",
                      help="whose prices are asked for: auto finds out")  # fmt: skip
    ours.add_argument("--limits", default=str(limits.FILE), help="what has to be kept")
    ours.add_argument("--result", help="a JSON file for the figures")


class Shape(LoadTestShape):
    """The shape that was asked for, over the time (-t) and the users (-u) that were asked for. Users of which a
    scenario has a fixed count are there all the time, and in addition."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        elapsed_s = self.get_run_time()
        if elapsed_s >= options.run_time:
            return None
        fixed = sum(user.fixed_count for user in self.runner.user_classes)
        asking = max(1, round(options.num_users * share_at(options.shape, elapsed_s, options.run_time)))
        return fixed + asking, max(options.spawn_rate or 0, options.num_users)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Everything that the users need, before there are any."""
    options = environment.parsed_options
    assert options is not None
    scenario = SCENARIOS[options.scenario]
    environment.user_classes = [getattr(users, name) for name in scenario.users]
    options.shape = options.shape or scenario.shape
    options.num_users, options.run_time = options.num_users or USERS, options.run_time or RUN_TIME_S
    try:
        environment.limits = limits_of(options.scenario, Path(options.limits))
    except BadLimits as error:
        sys.exit(str(error))
    environment.host = environment.host or HOST
    environment.world = AsyncResult()  # a master does not wait with its start until its workers are prepared
    keep_record(environment)
    catalog = catalog_of(environment.host, options.catalog)
    if scenario.cold and not isinstance(environment.runner, WorkerRunner):
        forget_all_prices(environment.host, BEST_SELLERS[catalog])
    if not isinstance(environment.runner, MasterRunner):
        # In a thread, because the real purchases take seconds, in which a master would think its worker gone.
        counts = gevent.get_hub().threadpool.apply(popularity, (catalog,))
        environment.world.set(shared(Draw(counts), environment))


def keep_record(environment: Environment) -> None:
    """Of this process, or, in the master, of all workers."""
    record = environment.record = Record()
    if isinstance(environment.runner, WorkerRunner):
        environment.events.report_to_master.add_listener(lambda client_id, data: data.update(record=record.taken()))
    if isinstance(environment.runner, MasterRunner):
        environment.events.worker_report.add_listener(lambda client_id, data: record.put(data["record"]))
    environment.events.request.add_listener(record.note)


def catalog_of(host: str, wanted: str) -> str:
    """The catalogue that the system there has; the grocer's, where it has both and its purchases are installed."""
    candidates = list(BEST_SELLERS) if wanted == "auto" else [wanted]
    for name in candidates:
        if (name == "sample" or real_catalogue()) and source_of(host, BEST_SELLERS[name]) is not None:
            return name
    sys.exit(
        f"The system at {host} has no prices of the catalogue {' or '.join(candidates)}: `make run` has the sample."
    )


def source_of(host: str, row: Row) -> str | None:
    """Where a quote comes from; None where the system does not know that price."""
    try:
        answer = httpx.post(f"{host}{READS}", json={"product_id": row[0], "user_location": row[1]}, timeout=10)
    except httpx.HTTPError:
        sys.exit(f"Nothing answers at {host}: start the system with `make run`, or name another with --host.")
    return str(answer.json()["source"]) if answer.status_code == 200 else None


def shared(draw: Draw, environment: Environment) -> World:
    """Each process has its own rows that its markets change."""
    ours = environment.runner.worker_index if isinstance(environment.runner, WorkerRunner) else 0
    watched = draw.rows[::WATCHED]
    stormy = [row for place, row in enumerate(draw.rows) if place % WATCHED]
    assert environment.host is not None
    return World(
        draw,
        deque(watched[1 + ours % PROCESSES :: PROCESSES]),
        stormy,
        Freshness(environment.limits.staleness_s),
        key_headers(Settings(), environment.host),
    )


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    environment.record.forget()


def forget_all_prices(host: str, known: Row) -> None:
    """Empty the cache of the system here, and make sure that it is the cache of the system that is asked."""
    pricing = Path(sys.executable).with_name("pricing")
    cleared = subprocess.run([pricing, "cache", "clear"], capture_output=True, text=True, timeout=60, check=False)
    if cleared.returncode:
        sys.exit(f"The cache cannot be emptied: {cleared.stderr.strip()}")
    deadline = time.monotonic() + COLD_WITHIN_S
    while source_of(host, known) != "database":
        if time.monotonic() > deadline:
            sys.exit(
                f"`pricing cache clear` empties another cache than that of {host}: "
                "set PRICING_DATA to its folder, or PRICING_CACHE_URL."
            )
        gevent.sleep(0.05)


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    """Say what was seen and what was breached, and end with 1 if anything was."""
    if isinstance(environment.runner, WorkerRunner) or environment.runner is None:
        return
    options = environment.parsed_options
    assert options is not None
    breached = breaches(environment.limits, environment.record)
    if environment.runner.exceptions:
        breached.append(f"{len(environment.runner.exceptions)} errors in the load test itself: see above")
    figures = result(environment, breached)
    if options.result:
        Path(options.result).write_text(json.dumps(figures, indent=1) + "\n")
    sys.stderr.write(spoken(figures))
    environment.process_exit_code = 1 if breached else 0
