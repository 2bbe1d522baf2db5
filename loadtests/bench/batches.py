"""Many prices in one request: how fast, and where the time goes."""

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from app.api.quick import QuickWay, Request, decode_batch, decode_request
from app.bootstrap import lifetimes, now_ms, open_resources
from app.domain.columns import EVERYONE, MEMBER, Segment
from app.domain.quote import quote
from app.domain.sheet import PriceSheet
from app.services.near_cache import NearCache
from app.services.quoting import load_slots
from app.services.slots import Name, place
from app.settings import Settings
from loadtests.bench import load
from loadtests.bench.results import Result, result
from loadtests.checks import decode, wrong

if TYPE_CHECKING:
    from loadtests.bench.measures import Bench

BATCH = "/api/v1/prices/batch"
IN_PROCESS = 1_000
"""Batches of a round within the process."""

Unpacked = tuple[Request, PriceSheet | None]


def batch(bench: "Bench") -> Iterator[Result]:
    """Quotes in batches of 100, against answers of as many bytes, and what each layer costs within the process."""
    first = bench.in_batches.read_bytes().split(b"\n", 1)[0]
    answer = load.post(bench.product.port, BATCH, first)
    items, asked = decode(answer)["items"], json.loads(first)["items"]
    problems = [wrong(item["quote"], question) for item, question in zip(items, asked, strict=True)]
    assert not any(problems), problems
    with bench.beside("loadtests.bench.peers:ceiling()", BENCH_ANSWER_BYTES=str(len(answer))) as ceiling:
        seen = bench.in_turns({"service": bench.product, "ceiling": ceiling}, BATCH, bench.in_batches)
    rates = {name: [run.per_s * 100 for run in runs] for name, runs in seen.items()}
    yield result(
        "batches of 100", "prices/s", rates["service"], target="≥ 400,000", holds=lambda value: value >= 400_000
    )
    yield result("batches of 100", "prices/s", rates["service"], rates["ceiling"], "a constant of as many bytes")
    yield result("batches of 100: CPU of the API", "µs/price", [run.cpu_us / 100 for run in seen["service"]])
    yield from layers(bench)


def layers(bench: "Bench") -> Iterator[Result]:
    """In this process, with everything at hand; each step does what the one before does, and more."""
    near = at_hand(bench)
    way = QuickWay(near, bring=_nothing_to_bring)

    def found(body: bytes) -> None:
        for question in decode_batch(body).items:
            near.concerned(place((question.product_id, question.user_location)))

    def unpacked(body: bytes) -> list[Unpacked]:
        now = now_ms()
        return [
            (question, near.at_hand(place((question.product_id, question.user_location)), _segment(question), now))
            for question in decode_batch(body).items
        ]

    def made(body: bytes) -> None:
        for question, sheet in unpacked(body):
            assert sheet is not None
            quote(question.product_id, question.user_location, sheet, _segment(question), question.quantity, "cache")

    steps: dict[str, Callable[[bytes], object]] = {
        "the question decoded": decode_batch,
        "+ rows found": found,
        "+ sheets unpacked": unpacked,
        "+ quotes made": made,
        "+ the answer written": lambda body: way.answer(BATCH, body),
    }
    bodies = bench.in_batches.read_bytes().split(b"\n")[:IN_PROCESS]
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(bench.rounds):
        for nth, (name, step) in enumerate(steps.items()):
            part = bodies[nth :: len(steps)]  # no other step has just brought these into the processor's caches
            began = time.process_time()
            for body in part:
                step(body)
            seen[name].append((time.process_time() - began) / len(part) / 100 * 1e6)
    for name, costs in seen.items():
        yield result(f"a price in process: {name}", "µs/price", costs)


def at_hand(bench: "Bench") -> NearCache:
    """A near cache in this process, with all that will be asked for."""
    questions = map(decode_request, bench.bodies)
    names = list({(question.product_id, question.user_location) for question in questions})
    settings = Settings(**{name.removeprefix("PRICING_").lower(): said for name, said in bench.product.stores.items()})
    store = open_resources(settings).store
    near = NearCache(len(names), silence_ms=0, clock=lambda: 0)
    near.heard(0)
    for start in range(0, len(names), 1000):
        for name, slot in load_slots(store, names[start : start + 1000], now_ms, lifetimes(settings).slot).items():
            near.put(name, slot, slot.fresh_until, near.epoch)
    store.close()
    return near


def _segment(question: Request) -> Segment:
    return MEMBER if question.is_prime_member else EVERYONE


async def _nothing_to_bring(names: Sequence[Name]) -> Collection[Name]:
    raise AssertionError(f"{names} are not at hand")
