"""The template and the schema that `mep configure` writes are good for something as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from sitekit.endpoint import SCHEMA

from mep.config.example import default_file
from mep_wire.errors import UserConfigInvalid
from tests.support.campus import Campus, make_campus

RESULT_S = 60


@pytest.fixture(scope="module")
def campus() -> Iterator[Campus]:
    template = default_file("user_config_template.yaml.j2")
    with make_campus("multi" if os.geteuid() == 0 else "single", "default", template) as made:
        made.endpoint.write(SCHEMA, default_file(SCHEMA))
        made.endpoint.register_again()
        made.endpoint.start()
        yield made


def environment(name: str) -> str | None:
    return os.environ.get(name)


def test_a_task_runs_without_any_value(campus: Campus) -> None:
    with campus.executor(campus.anybody) as executor:
        assert executor.submit(pow, 2, 5).result(timeout=RESULT_S) == 32


def test_every_value_that_the_schema_allows_has_its_effect(campus: Campus) -> None:
    commands = {"worker_init": "export SITE_SAYS=hello", "endpoint_setup": "true"}
    assert set(commands) | {"max_workers"} == set(json.loads(default_file(SCHEMA))["properties"])
    with campus.executor(campus.anybody, max_workers=1, **commands) as executor:
        assert executor.submit(environment, "SITE_SAYS").result(timeout=RESULT_S) == "hello"


def test_another_value_is_refused_by_name(campus: Campus) -> None:
    with campus.executor(campus.anybody, partition="gpu") as executor:
        error = executor.submit(pow, 2, 5).exception(timeout=RESULT_S)
    assert isinstance(error, UserConfigInvalid)
    assert "partition" in error.text
