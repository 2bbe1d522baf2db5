"""/metrics of the running system: all processes in one, declared, and right whoever is killed."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.metrics import Series, counted, ran_backwards, series, undeclared
from tests.support.shop import Shop
from tests.support.waiting import eventually


def scrape(shop: Shop) -> str:
    response = httpx.get(f"{shop.system.url}/metrics", timeout=10)
    assert response.status_code == 200
    return response.text


def value(seen: Series, name: str, **labels: str) -> float:
    return seen.get((name, frozenset(labels.items())), 0.0)


def living(shop: Shop) -> dict[str, float]:
    seen = series(scrape(shop))
    return {kind: value(seen, "pricing_processes", kind=kind) for kind in ("api", "listener", "worker", "jobs")}


WHOLE = {"api": 2, "listener": 1, "worker": 2, "jobs": 2}


def child(shop: Shop, name: str) -> psutil.Process:
    return psutil.Process(shop.system.pids()[name]).children()[0]


def kill_one_of_each(shop: Shop) -> None:
    """A worker of the API, Celery with all its children, one of the jobs' children, the listener, and who adds up."""
    child(shop, "api").kill()
    child(shop, "jobs").kill()
    for name in ("worker", "listener", "metrics"):
        shop.system.kill(name)


def repeatedly(do: Callable[[], None], until: threading.Event) -> None:
    while not until.is_set():
        do()


@contextmanager
def meanwhile(*jobs: Callable[[], None]) -> Iterator[None]:
    """Each is done again and again; what one raises is raised at the end."""
    ended = threading.Event()
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(repeatedly, job, ended) for job in jobs]
        try:
            yield
        finally:
            ended.set()
        for job in running:
            job.result()


def test_counters_never_run_backwards_whoever_is_killed(shop: Shop) -> None:
    product = shop.product()
    client = httpx.Client(base_url=shop.system.url, timeout=10, headers=shop.system.with_key)
    before: Series = {}
    scrapes = 0

    def be_a_customer() -> None:
        with suppress(httpx.TransportError):  # its process was killed
            client.post("/api/v1/price", json={"product_id": product, "user_location": "NY"})
            event = {"type": "stock.changed", "subject": product, "location": "NY", "data": {"quantity": 5}}
            client.post("/api/v1/publish-market-event", json=event)

    def be_prometheus() -> None:
        nonlocal before, scrapes
        try:
            after = counted(scrape(shop))
        except httpx.TransportError:
            return
        assert ran_backwards(before, after) == []
        before = after
        scrapes += 1

    eventually(lambda: living(shop) == WHOLE, timeout_s=30)
    with client, meanwhile(be_a_customer, be_prometheus):
        kill_one_of_each(shop)
        eventually(lambda: living(shop) != WHOLE)
        eventually(lambda: living(shop) == WHOLE, timeout_s=60)
        eventually(lambda: scrapes > 20, timeout_s=60)
    assert before
    shop.settle()


def test_no_more_processes_have_files_than_there_were_at_a_time(shop: Shop) -> None:
    alive = [psutil.Process(shop.system.pids()[name]) for name in ("worker", "jobs", "listener", "api")]
    (folder,) = {process.environ()["PROMETHEUS_MULTIPROC_DIR"] for process in alive}
    alive += [child for process in alive for child in process.children()]
    seats = {path.stem.rpartition("_")[2] for path in Path(folder).glob("*.db")}
    assert len(seats) <= len(alive) + 3  # whoever starts while others ask who lives may take the next seat


def test_all_that_is_exported_is_declared(shop: Shop) -> None:
    product = shop.product()
    shop.happen("cost.changed", product, "NY", data={"amount": 5})
    shop.quote(product)
    shop.http.request("PROPFIND", "/api/v1/price")
    eventually(lambda: 'method="other"' in scrape(shop))
    assert undeclared(scrape(shop)) == []
    seen = series(scrape(shop))
    assert value(seen, "pricing_events_published_total", type="cost.changed", source="api") >= 1
    (build,) = [dict(labels) for name, labels in seen if name == "pricing_build_info"]
    assert build["version"].count(".") == 2
    assert build["python"].startswith("3.")


@pytest.mark.parametrize("metric", ["pricing_oldest_unapplied_event_age_seconds", "pricing_dead_letters"])
def test_what_the_listener_sees_is_there_once(shop: Shop, metric: str) -> None:
    eventually(lambda: [name for name, _ in series(scrape(shop))].count(metric) == 1)
