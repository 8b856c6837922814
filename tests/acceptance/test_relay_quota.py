"""A person's share of the relay's disk, as that person meets it."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

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
    assert "0.9 MB of your 1.0 MB" in reason
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


def test_functions_count_and_many_small_ones_as_well(relay: RelayProcess) -> None:
    carol, dave = Person(relay, "carol"), Person(relay, "dave")
    small = carol.function("c")
    body = {"function_name": "f", "function_code": "x" * 990_000}
    known = carol.ok("POST", "/v3/functions", body)["function_uuid"]
    for code in ("x" * 20_000, "x" * 9_000):
        carol.refused(429, "STORAGE_FULL", "POST", "/v3/functions", {**body, "function_code": code})
    carol.refused(429, "STORAGE_FULL", "PUT", f"/v3/functions/{small}", {"description": "d" * 20_000})
    dave.ok("POST", "/v3/functions", body)
    carol.ok("DELETE", f"/v2/functions/{known}")
    reason = carol.refused(429, "STORAGE_FULL", "POST", "/v3/functions", body)
    assert "functions take up 1.0 MB of your 1.0 MB" in reason


def test_limits_of_rate_and_size_are_said_and_hold_for_one_person(tmp_path: Path) -> None:
    options = ("--max-requests-per-s", "5", "--max-batch", "3", "--max-payload-mb", "0.001", "--max-result-mb", "0.002")
    with RelayProcess(tmp_path, *options) as relay:
        alice, bob = Person(relay, "alice"), Person(relay, "bob")
        lab = FakeManager(relay, alice.token).hello()
        function = bob.function("the code", public=True)
        path = f"/v3/endpoints/{lab.endpoint_id}/submit"
        reason = bob.refused(422, "BODY_INVALID", "POST", path, {"tasks": {function: ["x"] * 4}})
        assert "1 to 3 tasks" in reason
        bob.refused(413, "PAYLOAD_TOO_LARGE", "POST", path, {"tasks": {function: ["x" * 1100]}})
        answer = bob.submit(lab.endpoint_id, function, ["x"])
        uep = lab.start()
        uep.credit(1)
        uep.finish(uep.take(1), b"r" * 3000)
        (task_id,) = answer["tasks"][function]
        assert bob.ok("GET", f"/v2/tasks/{task_id}")["code"] == "RESULT_TOO_LARGE"
        status, told = 200, {}
        for _ in range(1000):
            status, told = bob.call("GET", "/v2/endpoints")
            if status != 200:
                break
        assert (status, told["code"]) == (429, "RATE_LIMITED")
        alice.ok("GET", "/v2/endpoints")
        asked = urllib.request.Request(f"{relay.url}/v2/endpoints", headers={"authorization": f"Bearer {bob.token}"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            for _ in range(1000):
                urllib.request.urlopen(asked, timeout=60).close()
        assert int(caught.value.headers["retry-after"]) >= 1
