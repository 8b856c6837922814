"""The sites that acceptance tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.place import Place, make_place


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the site's logs with a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    places = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Place)]
    if report.failed and places:
        report.sections.append(("logs of the site", places[0].site.logs()))


MODES = [pytest.param("multi", marks=pytest.mark.root), "single"]


@pytest.fixture(scope="module", params=MODES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A running endpoint that the tests of a module share: multi-user and single-user in turn."""
    with make_place(request.param, "main") as made:
        made.endpoint.start()
        yield made


@pytest.fixture(scope="module")
def multi_user() -> Iterator[Place]:
    """A running multi-user endpoint."""
    with make_place("multi", "site") as made:
        made.endpoint.start()
        yield made


@pytest.fixture(scope="module")
def single_user() -> Iterator[Place]:
    """A running single-user endpoint."""
    with make_place("single", "laptop") as made:
        made.endpoint.start()
        yield made


@pytest.fixture(params=MODES)
def own_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An endpoint for one test alone, not started: for tests that kill things."""
    with make_place(request.param, "own") as made:
        yield made
