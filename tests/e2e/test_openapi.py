"""The published contract is complete, and whatever is asked, the answers keep to it."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.shop import Shop, shop_of_its_own

EXAMPLES = 20
"""Requests per operation and mode."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def odd_shop() -> Iterator[Shop]:
    """A system of its own: what is thrown at it changes every price."""
    with shop_of_its_own("openapi") as shop:
        shop.product()
        yield shop


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_gets_an_answer_that_is_not_in_the_contract(
    odd_shop: Shop, subtests: pytest.Subtests, mode: GenerationMode
) -> None:
    """Requests as the contract wants them (positive), and such as it forbids (negative)."""
    schema = schemathesis.openapi.from_url(f"{odd_shop.system.url}/openapi.json")
    # Every request shows a key that may do everything; those without one are for test_keys.py.
    schema.config.generation.update(with_security_parameters=False)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 20
    known = {"product_id": odd_shop.product(), "location": "NY", "user_location": "NY"}
    with requests.Session() as session:
        session.headers.update(odd_shop.system.with_key)
        for operation in operations:
            with subtests.test(operation.label):
                send_many(operation, mode, session, known)


def send_many(operation: Any, mode: GenerationMode, session: requests.Session, known: dict[str, str]) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE:
            # Else nearly all would ask for what is unknown, and never see an answer but 404.
            for part in (case.path_parameters, case.query, case.body):
                if isinstance(part, dict):
                    part.update({name: value for name, value in known.items() if name in part})
        case.call_and_validate(session=session, checks=CHECKS)

    if mode is GenerationMode.POSITIVE or operation.body or list(operation.iter_parameters()):
        send()


@pytest.fixture(scope="module")
def document(odd_shop: Shop) -> dict[str, Any]:
    found: dict[str, Any] = odd_shop.http.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def test_every_operation_says_what_it_does(operations: dict[str, dict[str, Any]]) -> None:
    assert len(operations) >= 20
    lacking = [name for name, it in operations.items() if not (it.get("summary") and it.get("description"))]
    assert lacking == []
    assert len({it["operationId"] for it in operations.values()}) == len(operations)


def examples(document: dict[str, Any], body: dict[str, Any]) -> list[Any]:
    content = body["content"]["application/json"]
    alternatives = [content["schema"], *content["schema"].get("anyOf", ())]
    return [
        example
        for schema in alternatives
        for example in (*schema.get("examples", ()), *resolved(document, schema).get("examples", ()))
    ]


def test_every_body_has_an_example_that_is_accepted(
    document: dict[str, Any], operations: dict[str, dict[str, Any]], odd_shop: Shop
) -> None:
    tried = 0
    for name, operation in operations.items():
        if "requestBody" not in operation:
            continue
        method, path = name.split()
        found = examples(document, operation["requestBody"])
        assert found, name
        for example in found:
            response = send_example(odd_shop.http, method, path, example)
            # Products, locations and such need not exist.
            assert response.status_code in (200, 201, 202, 404, 409), (name, response.text)
            tried += 1
    assert tried >= 8


def send_example(http: httpx.Client, method: str, path: str, example: Any) -> httpx.Response:
    """PUT wants the id of the body in its URL; a key's id has its own form."""
    for name in ("policy_id", "promotion_id"):
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", str(example[name]))
    path = path.replace("{key_id}", "a" * 12)
    return http.request(method, path, json=example)


def test_every_error_is_a_documented_problem(operations: dict[str, dict[str, Any]]) -> None:
    for name, operation in operations.items():
        statuses = {int(status) for status in operation["responses"]}
        if name.startswith(("GET /healthz", "GET /readyz", "GET /metrics")):
            continue
        assert {422, 413, 503} <= statuses, name
        assert ("requestBody" in operation) <= (400 in statuses), name
        assert min(statuses) < 300, name
        for status in statuses:
            response = operation["responses"][str(status)]
            assert response["description"], name
            if status >= 400:
                (content_type,) = response["content"]
                assert content_type == "application/problem+json", (name, status)
                assert response["content"][content_type]["schema"]["$ref"].endswith("/Problem")


def test_every_field_of_a_problem_is_there(document: dict[str, Any]) -> None:
    problem = document["components"]["schemas"]["Problem"]
    assert {"type", "title", "status", "detail", "code", "trace_id", "errors", "error_count"} == set(
        problem["properties"]
    )


def test_the_contract_can_be_read_as_a_page(odd_shop: Shop) -> None:
    response = odd_shop.http.get("/docs")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
