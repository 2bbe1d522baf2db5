"""`pricing top` beside a running system: its figures are the system's, and the terminal is left in order."""

import os
import pty
import re
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.shop import Shop
from tests.support.system import PRICING, environment, free_port
from tests.support.waiting import eventually


def top(shop: Shop, **env: str) -> str:
    """One picture."""
    done = subprocess.run(
        [PRICING, "top", "--once", "--interval-s", "0.5"],
        env=environment({"PRICING_DATA": str(shop.system.data), "COLUMNS": "160"} | env),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def figure(picture: str, name: str, column: int = 0) -> float:
    """A figure that stands after a name; figures that are shares or unknown count as columns, too."""
    found = re.search(rf"(?:^|  ){re.escape(name)}((?: +(?:[\d,.]+(?: %)?|–))+)", picture, re.M)
    assert found, f"no {name} in\n{picture}"
    return float(re.findall(r"[\d,.]+|–", found[1])[column].replace(",", ""))


@contextmanager
def stopped(shop: Shop, *names: str) -> Iterator[None]:
    processes = [process for name in names for process in tree(shop.system.pids()[name])]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def tree(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children()]


def test_requests_and_hits_are_counted_to_the_last_one(shop: Shop) -> None:
    product = shop.product()
    shop.quote(product)
    before = top(shop)
    for _ in range(37):
        shop.quote(product)
    for _ in range(3):
        shop.ask("nobody-sells-this")
    after = top(shop)

    def more(name: str, column: int) -> float:
        return figure(after, name, column) - figure(before, name, column)

    assert more("/api/v1/price", 1) == 40
    assert more("unknown", 2) == 3
    assert more("near cache", 2) + more("cache", 2) + more("database", 2) == 37


def test_events_that_wait_are_seen_with_their_age_and_then_as_applied(shop: Shop) -> None:
    product = shop.product()
    shop.settle()
    before = top(shop)
    assert figure(before, "not read") == figure(before, "oldest unapplied") == 0
    with stopped(shop, "listener"):
        for amount in (1, 2, 3):
            shop.publish("cost.changed", product, "NY", data={"amount": amount})
        waiting = eventually(lambda: having_waited(shop, 0.5))
    assert figure(waiting, "not read") == 3
    assert figure(waiting, "published") == figure(before, "published") + 3
    shop.settle()
    assert figure(top(shop), "applied") == figure(before, "applied") + 3


def having_waited(shop: Shop, seconds: float) -> str | None:
    picture = top(shop)
    return picture if figure(picture, "oldest unapplied") >= seconds else None


def test_dead_letters_and_processes_are_those_that_there_are(shop: Shop) -> None:
    shop.happen("cost.changed", "nobody-sells-this", "NY", data={"amount": 1})
    picture = top(shop)
    assert figure(picture, "dead letters") == shop.broker.xlen("events:dead") > 0
    assert [figure(picture, kind) for kind in ("api", "listener", "worker", "jobs")] == [2, 1, 2, 2]
    assert re.search("breakers +all closed", picture)


def test_a_recalculation_that_nobody_works_on_is_seen(shop: Shop) -> None:
    with stopped(shop, "jobs"):
        task_id = shop.http.post("/api/v1/recalculate").json()["task_id"]
        eventually(lambda: shop.http.get("/api/v1/tasks").json()["items"][0]["task_id"] == task_id)
        (line,) = [line for line in top(shop).splitlines() if line.startswith(task_id[:13])]
        assert (line.split()[1], line.split()[-4:]) == ("queued", ["0", "–", "–", "–"])
    assert shop.task(task_id)["state"] == "succeeded"
    assert task_id[:13] not in top(shop)


def test_without_the_api_there_is_what_redis_knows(shop: Shop) -> None:
    port = free_port()
    named = {"PRICING_BROKER_URL": shop.system.broker_url, "PRICING_PORT": str(port)}
    picture = top(shop, PRICING_DATA="nowhere", **named)
    assert f"http://127.0.0.1:{port} does not answer" in picture
    assert figure(picture, "dead letters") == shop.broker.xlen("events:dead")
    assert "recalculations" in picture
    assert "unknown" in picture


def test_where_nothing_runs_one_sentence_says_so(tmp_path: Path) -> None:
    def refused(**env: str) -> str:
        env |= {"PRICING_DATA": str(tmp_path)}
        done = subprocess.run([PRICING, "top"], env=environment(env), capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    assert refused() == (
        "pricing: Nothing runs here: start it with `pricing up`, or name its stores (see `pricing config`).\n"
    )
    port = free_port()
    assert refused(PRICING_PORT=str(port), PRICING_CACHE_URL=f"redis://127.0.0.1:{free_port()}") == (
        f"pricing: Nothing runs: neither http://127.0.0.1:{port} nor Redis answers. `pricing doctor` says more.\n"
    )


def test_the_live_view_goes_on_until_ctrl_c_and_leaves_the_terminal_as_it_was(shop: Shop) -> None:
    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    termios.tcsetwinsize(ours, (40, 120))
    env = {"PRICING_DATA": str(shop.system.data), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [PRICING, "top", "--interval-s", "0.2"], env=environment(env), stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
    )  # fmt: skip
    seen = b""

    def pictures() -> int:
        nonlocal seen
        seen += os.read(ours, 65536)
        return seen.count(b"oldest unapplied")

    eventually(lambda: pictures() >= 3, timeout_s=30)
    os.write(ours, b"\x03")
    os.set_blocking(ours, False)

    def ended() -> bool:
        """Once it has, everything is read that it wrote: who fills a terminal that nobody reads waits for ever."""
        over = process.poll() is not None
        with suppress(BlockingIOError):
            while True:
                pictures()
        return over

    eventually(ended, timeout_s=30)
    assert process.returncode == 0
    enter, leave, hidden, there = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25l", b"\x1b[?25h"
    assert seen.index(enter) < seen.index(b"oldest unapplied") < seen.rindex(b"oldest unapplied") < seen.index(leave)
    assert seen.rindex(hidden) < seen.rindex(there)
    assert b"Traceback" not in seen
    assert b"Aborted" not in seen
    assert termios.tcgetattr(theirs) == modes
    os.close(ours)
    os.close(theirs)
