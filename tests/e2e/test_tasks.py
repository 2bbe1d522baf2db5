"""Recalculations over HTTP and on the command line: listed, cancelled, resumed, joined."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.shop import Shop, problem
from tests.support.system import PRICING, environment
from tests.support.waiting import eventually

PATIENCE_S = 90


@contextmanager
def held_up(shop: Shop) -> Iterator[None]:
    """No task gets further: somebody holds a row, perhaps in order to change it."""
    product = shop.product()
    with shop.another_connection() as connection:
        connection.execute(
            "SELECT FROM list_prices JOIN products USING (product_key) WHERE product_id = %s FOR UPDATE", [product]
        )
        yield


def recalculate(shop: Shop) -> str:
    task_id: str = shop.http.post("/api/v1/recalculate").json()["task_id"]
    return task_id


def state(shop: Shop, task_id: str) -> str:
    answer: str = shop.http.get(f"/api/v1/tasks/{task_id}").json()["state"]
    return answer


def change(shop: Shop, task_id: str, how: str) -> dict[str, Any]:
    response = shop.http.post(f"/api/v1/tasks/{task_id}/{how}")
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def pricing_tasks(shop: Shop, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = environment({"PRICING_DATA": str(shop.system.data), "COLUMNS": "200"})
    return subprocess.run([PRICING, "tasks", *arguments], env=env, capture_output=True, text=True, timeout=60)


def test_a_task_is_cancelled_and_resumed(shop: Shop) -> None:
    with held_up(shop):
        task_id = recalculate(shop)
        eventually(lambda: state(shop, task_id) == "running")
        for _ in range(2):
            assert change(shop, task_id, "cancel")["state"] == "cancelled"
        assert change(shop, task_id, "resume")["state"] in ("queued", "running")
        assert change(shop, task_id, "cancel")["ended_at"] is not None
        shop.settle()
    assert change(shop, task_id, "resume")["ended_at"] is None
    task = shop.task(task_id, PATIENCE_S)
    assert (task["state"], task["event_id"]) == ("succeeded", task_id)
    assert task["done"] == task["total"] > 0
    for how in ("cancel", "resume"):
        problem(shop.http.post(f"/api/v1/tasks/{task_id}/{how}"), 409, "task_ended")
        problem(shop.http.post(f"/api/v1/tasks/unknown/{how}"), 404, "not_found")


def test_requests_for_the_same_work_wait_and_join(shop: Shop) -> None:
    with held_up(shop):
        first = recalculate(shop)
        eventually(lambda: state(shop, first) == "running")
        second = recalculate(shop)
        eventually(lambda: state(shop, second) == "waiting")
        third = recalculate(shop)
        eventually(lambda: shop.http.get(f"/api/v1/tasks/{third}").json()["joined"] == second)
    tasks = [shop.task(task_id, PATIENCE_S) for task_id in (first, second, third)]
    assert [task["state"] for task in tasks] == ["succeeded"] * 3
    assert tasks[1]["started_at"] == tasks[2]["started_at"] >= tasks[0]["ended_at"]


def test_tasks_are_listed_page_by_page(shop: Shop) -> None:
    ids = [recalculate(shop) for _ in range(2)]
    for task_id in ids:
        shop.task(task_id)
    page = shop.http.get("/api/v1/tasks", params={"limit": 1}).json()
    following = shop.http.get("/api/v1/tasks", params={"limit": 1, "before": page["next_before"]}).json()
    assert {item["task_id"] for item in (*page["items"], *following["items"])} == set(ids)
    failed = shop.http.get("/api/v1/tasks", params={"state": "failed"}).json()
    assert failed == {"items": [], "next_before": None}
    problem(shop.http.get("/api/v1/tasks", params={"before": "unknown"}), 404, "not_found")
    problem(shop.http.get("/api/v1/tasks", params={"state": "odd"}), 422, "invalid_input")


def test_the_command_line_shows_follows_and_cancels_tasks(shop: Shop) -> None:
    with held_up(shop):
        task_id = recalculate(shop)
        eventually(lambda: state(shop, task_id) == "running")
        assert task_id in pricing_tasks(shop, "list", "--state", "running").stdout
        assert "is cancelled" in pricing_tasks(shop, "cancel", task_id).stdout
        followed = pricing_tasks(shop, "show", "--follow", task_id)
        assert (followed.returncode, followed.stdout.splitlines()[0]) == (1, f"Task {task_id}: cancelled")
    assert pricing_tasks(shop, "resume", task_id).returncode == 0
    followed = pricing_tasks(shop, "show", "--follow", task_id)
    assert (followed.returncode, followed.stdout.splitlines()[0]) == (0, f"Task {task_id}: succeeded")
    late = pricing_tasks(shop, "cancel", task_id)
    assert (late.returncode, late.stderr) == (1, f"pricing: task '{task_id}' has succeeded\n")
    assert "There is no task" in pricing_tasks(shop, "show", "unknown").stderr
