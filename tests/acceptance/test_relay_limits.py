"""Each limit of mep-relay.toml at a real relay, the SDK at one of rate, and a database that is full or too new."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path

import pytest

from mep_sdk import Client
from relay.store.schema import MIGRATIONS
from tests.support.fake_peer import FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.waiting import until


def submission(endpoint_id: str) -> str:
    return f"/v3/endpoints/{endpoint_id}/submit"


def test_tasks_queued_at_one_endpoint_are_limited_and_others_are_not(tmp_path: Path) -> None:
    with RelayProcess(tmp_path, "--max-open-tasks-at-endpoint", "3") as relay:
        alice, bob = Person(relay, "alice"), Person(relay, "bob")
        full, other = FakeManager(relay, alice.token), FakeManager(relay, alice.token)
        function = alice.function(public=True)
        alice.submit(full.endpoint_id, function, ["x"] * 3)
        more = {"tasks": {function: ["x"]}}
        alice.refused(429, "TOO_MANY_TASKS", "POST", submission(full.endpoint_id), more)
        alice.submit(other.endpoint_id, function, ["x"])
        bob.submit(full.endpoint_id, function, ["x"])


def test_tasks_per_second_are_limited_for_each_person(tmp_path: Path) -> None:
    with RelayProcess(tmp_path, "--max-tasks-per-s", "1") as relay:
        alice, bob = Person(relay, "alice"), Person(relay, "bob")
        lab = FakeManager(relay, alice.token)
        function = alice.function(public=True)
        alice.submit(lab.endpoint_id, function, ["x"] * 500)  # taken, and paid for by waiting
        alice.refused(429, "RATE_LIMITED", "POST", submission(lab.endpoint_id), {"tasks": {function: ["x"]}})
        bob.submit(lab.endpoint_id, function, ["x"])


def test_the_sdk_waits_as_long_as_a_relay_that_limits_it_asks_for(tmp_path: Path) -> None:
    with RelayProcess(tmp_path, "--max-requests-per-s", "2") as relay:
        alice = Person(relay)
        lab = FakeManager(relay, alice.token)
        ids = alice.submit(lab.endpoint_id, alice.function(), ["x"])["tasks"]
        ((task_id,),) = ids.values()
        until("a refusal", lambda: alice.call("GET", f"/v2/tasks/{task_id}")[0] == 429)
        client = Client(relay_url=relay.url, token=alice.token)
        assert client.get_task(task_id)["status"] == "waiting-for-ep"


def test_tasks_that_wait_too_long_expire_and_delivered_ones_go_sooner(tmp_path: Path) -> None:
    options = ("--task-lifetime-days", "0.0001", "--delivered-days", "0.00001")
    with RelayProcess(tmp_path, *options) as relay:
        alice = Person(relay)
        lab = FakeManager(relay, alice.token).hello()
        function = alice.function()
        delivered, kept = (alice.submit(lab.endpoint_id, function, ["x"]) for _ in range(2))
        uep = lab.start()
        for _ in range(2):
            uep.credit(1)
            uep.finish(uep.take(1))
        alice.stream(delivered["task_group_id"]).results(1, 60)
        waits = alice.submit(lab.endpoint_id, function, ["x"])
        first, second, third = (one["tasks"][function][0] for one in (delivered, kept, waits))
        until("the sweep", lambda: alice.call("GET", f"/v2/tasks/{first}")[0] == 404, 200)
        assert alice.task(second)["status"] == "success"
        until("the expiry", lambda: alice.task(third).get("code") == "TASK_EXPIRED", 200)


@pytest.mark.root
def test_a_full_disk_refuses_new_tasks_and_loses_none(tmp_path: Path) -> None:
    disk = tmp_path / "relay-state"
    disk.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=0700", "tmpfs", disk], check=True)
    relay = RelayProcess(tmp_path)
    try:
        relay.start()
        alice = Person(relay)
        lab = FakeManager(relay, alice.token).hello()
        function = alice.function()
        accepted = alice.submit(lab.endpoint_id, function, ["x" * 1000] * 5)["tasks"][function]
        with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        body = {"tasks": {function: ["y" * 900_000] * 9}}
        until("a refusal", lambda: alice.call("POST", submission(lab.endpoint_id), body)[0] == 503)
        (disk / "filler").unlink()
        until(
            "it to be back",
            lambda: alice.call("POST", submission(lab.endpoint_id), {"tasks": {function: ["z"]}})[0] == 200,
        )
        uep = lab.start()
        uep.credit(100)
        uep.finish(uep.take(5))
        assert [alice.task(one)["status"] for one in accepted] == ["success"] * 5
        assert relay.cli("db", "check").returncode == 0
    finally:
        relay.stop()
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_database_of_a_newer_relay_stops_the_start_and_stays_as_it_is(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path).start()
    relay.stop()
    connection = sqlite3.connect(relay.state / "relay.db", isolation_level=None)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(RuntimeError, match="install the relay that wrote it"):
        relay.start()
    assert "install the relay that wrote it" in relay.cli("db", "upgrade", check=False).stderr
