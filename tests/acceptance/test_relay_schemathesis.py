"""schemathesis over the relay's own specification: no operation may crash, or answer in a way it does not say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from relay.api.openapi import specification
from relay.api.routes import ROUTES, VERSION
from tests.support.relay import RelayProcess

EXAMPLES = 8
"""Of each operation."""
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(specification(ROUTES, VERSION))
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path_factory.mktemp("relay")) as running:
        yield running


@pytest.fixture(scope="module")
def token(relay: RelayProcess) -> str:
    return relay.add_user("fuzz@example.edu")


def test_all_operations_are_tried() -> None:
    assert len(OPERATIONS) == len(ROUTES)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.label)
def test_an_operation_answers_as_it_says(relay: RelayProcess, token: str, operation: Any) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def tried(case: Any) -> None:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        answer = case.call(base_url=relay.url, headers=headers, timeout=60, allow_redirects=False)
        case.validate_response(answer, checks=CHECKS)

    tried()
