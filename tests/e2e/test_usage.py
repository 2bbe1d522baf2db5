"""What was used, as who writes bills asks for it."""

import csv
import io
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support.shop import Shop, problem
from tests.support.waiting import eventually

USAGE = "/api/v1/usage"


class Asked:
    """Requests of one user that nobody else is: three prices, and one that there is no route for."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.user = shop, f"u-{uuid4()}"
        product = shop.product()
        with httpx.Client(base_url=shop.system.url, headers={"X-User-ID": self.user}) as client:
            for _ in range(3):
                client.post("/api/v1/price", json={"product_id": product, "user_location": "NY"})
            client.get("/nowhere")
        eventually(lambda: self.usage()["total"]["requests"] == 4, timeout_s=30)

    def usage(self, **asked: Any) -> Any:
        response = self.shop.http.get(USAGE, params={"user_id": self.user, **asked})
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture(scope="module")
def asked(shop: Shop) -> Asked:
    return Asked(shop)


def test_usage_is_told_by_what_is_asked_for_with_its_total(asked: Asked) -> None:
    told = asked.usage(by="route,status", per="all")
    assert [(item["route"], item["status"], item["requests"]) for item in told["items"]] == [
        ("/api/v1/price", "200", 3), ("unmatched", "404", 1),
    ]  # fmt: skip
    assert told["items"][0]["sent_bytes"] > 300
    assert (told["total"]["requests"], told["total"]["failed"], told["next_skip"]) == (4, 0, None)
    assert told["per"] == "all"
    assert told["by"] == ["route", "status"]
    assert told["complete_until"] > told["from"]
    (day,) = asked.usage()["items"]
    assert day["period"].endswith("T00:00:00Z")
    (hour,) = asked.usage(per="hour", by=["key_id", "user_id"], route="unmatched")["items"]
    assert (hour["key_id"], hour["user_id"], hour["requests"]) == ("", asked.user, 1)


def test_pages_follow_each_other(asked: Asked) -> None:
    first = asked.usage(by="route", limit=1)
    second = asked.usage(by="route", limit=1, skip=first["next_skip"])
    assert [page["items"][0]["route"] for page in (first, second)] == ["/api/v1/price", "unmatched"]
    assert second["next_skip"] is None
    assert first["total"] == second["total"]


@pytest.mark.parametrize("how", [{"params": {"format": "csv"}}, {"headers": {"Accept": "text/csv"}}], ids=str)
def test_a_table_for_a_spreadsheet(asked: Asked, how: dict[str, Any]) -> None:
    params = {"user_id": asked.user, "by": "route,status", **how.get("params", {})}
    response = asked.shop.http.get(USAGE, params=params, headers=how.get("headers"))
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["x-complete-until"].endswith("Z")
    assert response.headers["x-missing-requests"].isdecimal()
    head, *rows = csv.reader(io.StringIO(response.text))
    assert head == ["period", "route", "status", "requests", "failed", "sent_bytes", "latency_ms"]
    assert [row[1:4] for row in rows] == [["/api/v1/price", "200", "3"], ["unmatched", "404", "1"]]


@pytest.mark.parametrize(
    "params",
    [{"by": "shoe_size"}, {"from": "2026-11-22", "until": "2026-11-21"}, {"from": "2020-01-01"}, {"by": "route,route"}],
    ids=str,
)
def test_what_cannot_be_counted_is_refused(shop: Shop, params: dict[str, str]) -> None:
    problem(shop.http.get(USAGE, params=params), 422, "invalid_input")


def test_nobody_but_an_administrator_sees_who_used_what(shop: Shop) -> None:
    with httpx.Client(base_url=shop.system.url) as nobody:
        problem(nobody.get(USAGE), 401, "unauthenticated")
