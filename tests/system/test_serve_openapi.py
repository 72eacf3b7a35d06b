"""The API held against its own OpenAPI document: no 5xx, no reply that the document does not describe.

``make test`` runs a short form, ``make trials`` at least 5,000 cases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.system.local_endpoint import Local, endpoint

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
TRIAL_CASES = 5_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with endpoint(tmp_path_factory.mktemp("openapi")) as local:
        yield local


@pytest.fixture(scope="module")
def document(place: Local) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{place.url}/openapi.json", config=SchemathesisConfig())


def operations(document: schemathesis.BaseSchema) -> list[Any]:
    return [found.ok() for found in document.get_all_operations()]


def hold(operation: Any, check: Callable[[schemathesis.Case], None], cases: int, seed: int) -> None:
    """``cases`` generated requests to one operation."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=[*HealthCheck], phases=[Phase.generate]
    )
    @hypothesis.given(case=operation.as_strategy())
    def run(case: schemathesis.Case) -> None:
        check(case)

    run()


def as_documented(place: Local) -> Callable[[schemathesis.Case], None]:
    headers = {"authorization": f"Bearer {place.keys['admin']}"}
    return lambda case: case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)


def test_replies_are_as_documented(document: schemathesis.BaseSchema, place: Local) -> None:
    found = operations(document)
    assert len(found) >= 12
    for operation in found:
        hold(operation, as_documented(place), cases=8, seed=1)


def test_a_streamed_reply_is_as_documented(document: schemathesis.BaseSchema, place: Local) -> None:
    body = {"messages": [{"role": "user", "content": "Who wrote Emma?"}], "stream": True, "max_tokens": 4}
    case = document["/v1/chat/completions"]["POST"].Case(body=body, media_type="application/json")
    as_documented(place)(case)


@pytest.mark.trial
@pytest.mark.timeout(1800)
def test_replies_are_as_documented_in_thousands_of_cases(document: schemathesis.BaseSchema, place: Local) -> None:
    found = operations(document)
    for operation in found:
        hold(operation, as_documented(place), cases=-(-TRIAL_CASES // len(found)), seed=2)


def test_no_operation_forgets_the_key(document: schemathesis.BaseSchema, place: Local) -> None:
    for operation in operations(document):
        if operation.path not in ("/healthz", "/readyz"):
            case = operation.Case(path_parameters=dict.fromkeys(re.findall(r"{(\w+)}", operation.path), "x"))
            assert case.call(headers={"authorization": "Bearer agm_wrong"}, timeout=60).status_code == 401, operation
