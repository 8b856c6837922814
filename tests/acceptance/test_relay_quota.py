"""A person's share of the relay's disk, as that person meets it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.fake_peer import FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person


@pytest.fixture
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path_factory.mktemp("relay"), "--max-stored-gb", "0.001") as running:
        yield running


def test_who_has_too_much_stored_is_refused_also_after_a_restart_and_nobody_else(relay: RelayProcess) -> None:
    alice, bob = Person(relay, "alice"), Person(relay, "bob")
    lab = FakeManager(relay, alice.token)
    function = alice.function("the code", public=True)
    answer = alice.submit(lab.endpoint_id, function, ["x" * 300_000] * 3)
    path, body = f"/v3/endpoints/{lab.endpoint_id}/submit", {"tasks": {function: ["x" * 200_000]}}
    reason = alice.refused(429, "STORAGE_FULL", "POST", path, body)
    assert "0.9 MB here, of 1.0 MB" in reason
    bob.ok("POST", path, body)
    relay.kill()
    relay.start()
    alice.refused(429, "STORAGE_FULL", "POST", path, body)
    ids = answer["tasks"][function]
    assert alice.ok("POST", "/v3/tasks/cancel", {"task_ids": ids})["cancelled"] == ids
    status, _ = alice.call("POST", path, body)
    while status == 429:  # until the arguments of ended tasks are removed
        time.sleep(0.2)
        status, _ = alice.call("POST", path, body)
    assert status == 200
