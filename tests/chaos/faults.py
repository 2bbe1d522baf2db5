"""What can go wrong, as small operations: each is a context that begins the fault, and ends it where it has an end."""

import json
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from uuid import uuid4

import psutil

from tests.chaos.fleet import Fleet


@contextmanager
def killed(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """kill -9."""
    _send(processes, signal.SIGKILL)
    yield


@contextmanager
def told_to_end(process: psutil.Process) -> Iterator[None]:
    """SIGTERM, once."""
    _send([process], signal.SIGTERM)
    yield


@contextmanager
def stopped(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end: the parent first, so that none is born meanwhile."""
    _send(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(processes, signal.SIGCONT)


def _send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # somebody else ended it
            process.send_signal(number)


@contextmanager
def restarted_fast(postmaster: psutil.Process) -> Iterator[None]:
    """PostgreSQL's "fast" shutdown: it ends every session and stops; its supervisor starts it again."""
    _send([postmaster], signal.SIGINT)
    yield


def backends(fleet: Fleet) -> list[psutil.Process]:
    """PostgreSQL's processes that serve the service, in the order of their start."""
    rows = fleet.sql(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        " ORDER BY backend_start"
    )
    found = []
    for (pid,) in rows:
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


@contextmanager
def cut_off(fleet: Fleet, *, redis: bool = False, postgres: bool = False) -> Iterator[None]:
    """The second host's connections end, and it can make no new ones."""
    proxies = fleet.proxies(redis=redis, postgres=postgres)
    for proxy in proxies:
        proxy.cut()
    try:
        yield
    finally:
        for proxy in proxies:
            proxy.heal()


@contextmanager
def half_open(fleet: Fleet, *, redis: bool = False, postgres: bool = False, resumes: bool = False) -> Iterator[None]:
    """The second host's connections stay, and nothing passes. Afterwards new ones work; those that are there pass
    on what they held back if the network `resumes`, else stay mute for ever."""
    proxies = fleet.proxies(redis=redis, postgres=postgres)
    for proxy in proxies:
        proxy.freeze()
    try:
        yield
    finally:
        for proxy in proxies:
            proxy.heal(resume=resumes)


@contextmanager
def clock_jumps(fleet: Fleet, offset_s: int) -> Iterator[None]:
    """The second host's clock goes wrong, and right again at the end."""
    fleet.set_clock(offset_s)
    try:
        yield
    finally:
        fleet.set_clock(0)


@contextmanager
def read_by_a_consumer_that_dies(fleet: Fleet, count: int) -> Iterator[None]:
    """Somebody of the group takes the next events and is never heard of again: they are applied late, after newer
    ones. Whoever waits in Redis for an event has it before those who come and look."""
    name = f"dead-{uuid4().hex[:8]}"
    fleet.broker.xreadgroup("repricing", name, {"events": ">"}, count=count, block=1000)
    yield


POISON = "poison-"
"""What the ids of events begin with whose transaction always fails."""


def arm_poison(fleet: Fleet) -> None:
    """From now on, whoever applies a poisonous event fails, for a reason that nobody foresaw."""
    fleet.sql(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'unforeseen'; END $$;"
        "CREATE TRIGGER poison BEFORE INSERT ON processed_events"
        f" FOR EACH ROW WHEN (NEW.event_id LIKE '{POISON}%') EXECUTE FUNCTION fail()"
    )


@contextmanager
def poisoned(fleet: Fleet, where: str) -> Iterator[None]:
    """Messages in the stream or on the channel that can never be applied, one of each sort; noted in the fleet."""
    messages = [
        f"no json {uuid4().hex}",
        json.dumps([uuid4().hex]),
        json.dumps({"id": f"gossip-{uuid4().hex}", "type": "gossip"}),
        _one_cent(f"unknown-{uuid4().hex}", "nobody-knows-it"),
        _one_cent(f"{POISON}{uuid4().hex}", fleet.some_product),
    ]
    for message in messages:
        if where == "stream":
            fleet.broker.xadd("events", {"event": message})
        else:
            fleet.broker.publish("market_events", message)
        fleet.poison.append(message)
    yield


def _one_cent(event_id: str, product: str) -> str:
    """An event that nobody must ever apply: the oracle knows nothing of it."""
    data = {"amount": 0.01}
    return json.dumps(
        {"id": event_id, "type": "list_price.changed", "subject": product, "location": "NY", "data": data}
    )
