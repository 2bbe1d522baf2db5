"""The running service as its customers have it: quotes and events over HTTP."""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import Any, TypeVar

import httpx
import msgspec

from app.errors import InvalidInput, Unavailable
from app.replay.year import Price

_BATCH = 1000
_ATTEMPTS = 5
encode = msgspec.json.Encoder(decimal_format="number").encode
"""JSON with decimals as numbers, every digit kept."""

_decode = msgspec.json.Decoder(float_hook=Decimal).decode
_JSON = {"content-type": "application/json"}

T = TypeVar("T")


class Service:
    """One client per request at a time: a shared pool of connections costs more the more of them it has
    (httpcore looks at each for each request), and at 32 took four times the processor time of the rest."""

    def __init__(self, clients: Sequence[httpx.AsyncClient]) -> None:
        self._url = clients[0].base_url
        self._idle = deque(clients)

    async def publish(self, event: dict[str, Any]) -> None:
        """Returns when the event is accepted. Safe to repeat, by its id."""
        await self._post("/api/v1/publish-market-event", event)

    async def member_price(self, product: int, store: int, quantity: int) -> int:
        """The unit price in cents, as one customer asks for it."""
        return cents((await self._post("/api/v1/price", _item(product, store, quantity)))["final_price"])

    async def standing(self, prices: Sequence[Price]) -> list[Price]:
        """What these products cost now in these stores. Raises `InvalidInput` where one is not for sale."""
        now: list[Price] = []
        for start in range(0, len(prices), _BATCH):
            part = prices[start : start + _BATCH]
            items = [_item(price.product, price.store, 1) for price in part]
            answers = (await self._post("/api/v1/prices/batch", {"items": items}))["items"]
            for price, item in zip(part, answers, strict=True):
                if item["quote"] is None:
                    problem = item["problem"].get("detail") or item["problem"]["title"]
                    raise InvalidInput(f"{problem}: run `pricing import completejourney` first")
                regular, paid = cents(item["quote"]["list_price"]), cents(item["quote"]["final_price"])
                now.append(Price(price.product, price.store, regular, paid))
        return now

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer. What may pass (no connection, 503) is tried again, a little later each time."""
        problem = ""
        for attempt in range(_ATTEMPTS):
            client = self._idle.popleft()
            try:
                response = await client.post(path, content=encode(body), headers=_JSON)
            except httpx.TransportError as error:
                problem = f"does not answer ({error or type(error).__name__})"
            else:
                if response.is_success:
                    return _decode(response.content)
                problem = f"answered {response.status_code} to POST {path}: {response.text[:200]}"
                if response.status_code != 503:
                    break
            finally:
                self._idle.append(client)
            await asyncio.sleep(0.2 * 2**attempt)
        raise Unavailable(f"the service at {self._url} {problem}")


@asynccontextmanager
async def connect(url: str, concurrency: int, headers: dict[str, str]) -> AsyncIterator[Service]:
    """For at most `concurrency` requests at a time. The `headers`, which show an API key, go with each."""
    trusted = ssl.create_default_context()
    async with AsyncExitStack() as stack:
        clients = [
            httpx.AsyncClient(base_url=url, verify=trusted, timeout=30, headers=headers) for _ in range(concurrency)
        ]
        yield Service([await stack.enter_async_context(client) for client in clients])


async def at_once(concurrency: int, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Work on all items, that many at a time; the first error ends it."""
    rest = iter(items)

    async def worker() -> None:
        for item in rest:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as several:
        raise several.exceptions[0] from None


def cents(amount: Decimal | int) -> int:
    return int(Decimal(amount).scaleb(2))


def _item(product: int, store: int, quantity: int) -> dict[str, Any]:
    return {
        "product_id": str(product),
        "user_location": str(store),
        "is_prime_member": True,
        "quantity": quantity,
    }
