"""The sites, relays and people that acceptance tests share."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.campus import Campus, make_campus
from tests.support.fake_peer import FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.uep_process import private_home


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the site's logs with a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    places = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Campus)]
    if report.failed and places:
        report.sections.append(("logs of the site", places[0].site.logs()))


MODES = [pytest.param("multi", marks=pytest.mark.root), "single"]


@pytest.fixture(scope="module", params=MODES)
def campus(request: pytest.FixtureRequest) -> Iterator[Campus]:
    """A running endpoint that the tests of a module share: multi-user and single-user in turn."""
    with make_campus(request.param, "main") as made:
        made.endpoint.start()
        yield made


@pytest.fixture(scope="module")
def multi_user() -> Iterator[Campus]:
    """A running multi-user endpoint."""
    with make_campus("multi", "site") as made:
        made.endpoint.start()
        yield made


@pytest.fixture(scope="module")
def single_user() -> Iterator[Campus]:
    """A running single-user endpoint."""
    with make_campus("single", "laptop") as made:
        made.endpoint.start()
        yield made


@pytest.fixture(params=MODES)
def own_place(request: pytest.FixtureRequest) -> Iterator[Campus]:
    """An endpoint for one test alone, not started: for tests that kill things."""
    with make_campus(request.param, "own") as made:
        yield made


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    """A relay that the tests of a module share."""
    with RelayProcess(tmp_path_factory.mktemp("relay")) as running:
        yield running


@pytest.fixture(scope="module")
def alice(relay: RelayProcess) -> Person:
    """A person with an account at the relay."""
    return Person(relay, "alice")


@pytest.fixture
def lab(relay: RelayProcess, alice: Person) -> FakeManager:
    """The manager of an endpoint of hers, played by the test."""
    return FakeManager(relay, alice.token).hello()


@pytest.fixture(scope="module")
def function(alice: Person) -> str:
    """The id of a function of hers."""
    return alice.function("the code")


@pytest.fixture
def home() -> Iterator[pathlib.Path]:
    """A home directory for a user endpoint's process."""
    with private_home() as made:
        yield made
