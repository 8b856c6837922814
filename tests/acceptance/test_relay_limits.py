"""Each limit of mep-relay.toml at a real relay, the SDK at one of rate, and a database that is full or too new."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from mep_sdk import Client
from relay.store.schema import MIGRATIONS
from tests.support.fake_peer import FakeManager, FakeUep
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


class SweepingRelay(RelayProcess):
    """A relay that looks for old records each half second."""

    def _command(self, *words: str) -> list[str]:
        *python, code = super()._command()[:4]
        patch = "import relay.retention as r; r.INTERVAL_S = r.INPUTS_INTERVAL_S = 0.5;"
        return [*python, f"{patch} {code}", *words, "--state", str(self.state)]


def test_ended_tasks_go_after_their_retention_and_what_they_took_is_free(tmp_path: Path) -> None:
    with SweepingRelay(tmp_path, "--retention-days", "0.00003") as relay:  # three seconds
        alice = Person(relay)
        lab = FakeManager(relay, alice.token).hello()
        function = alice.function()
        first, newest, waits = (alice.submit(lab.endpoint_id, function, ["x" * 10_000]) for _ in range(3))
        ids = [one["tasks"][function][0] for one in (first, newest, waits)]
        before = json.loads(relay.cli("storage", "--json").stdout)[0]["bytes"]
        uep = lab.start()
        for _ in range(2):
            uep.credit(1)
            uep.finish(uep.take(1), b"r" * 10_000)
        until("the first to go", lambda: alice.call("GET", f"/v2/tasks/{ids[0]}")[0] == 404)
        assert alice.task(ids[2])["status"] not in ("success", "failed")  # one that waits has no such end
        uep.credit(1)
        (last,) = uep.take(1)
        assert (last.task_id, last.payload) == (ids[2], b"x" * 10_000)
        uep.finish([last], b"")
        until("the second to go", lambda: alice.call("GET", f"/v2/tasks/{ids[1]}")[0] == 404)
        until("the room", lambda: json.loads(relay.cli("storage", "--json").stdout)[0]["bytes"] < before - 29_000)
        assert relay.cli("db", "check").returncode == 0


def test_what_is_unused_for_long_goes_and_tasks_that_need_it_still_run(tmp_path: Path) -> None:
    with SweepingRelay(tmp_path, "--unused-days", "0.0001", "--retention-days", "0.00001") as relay:  # nine seconds
        alice = Person(relay)
        lab = FakeManager(relay, alice.token).hello()
        function = alice.function("used")
        gone, _ = (alice.submit(lab.endpoint_id, function, ["x"], user_endpoint_config={"a": 1}) for _ in range(2))
        process = lab.start()
        for _ in range(2):  # the newest result always stays
            process.credit(1)
            process.finish(process.take(1))
        lab.ended(process.uep_id, "IDLE", "it was idle", process.incarnation)
        process.close()
        waits = alice.submit(lab.endpoint_id, function, ["x"])
        request, token = lab.take_start()
        path, more = submission(lab.endpoint_id), {"tasks": {function: ["x"]}}

        until("the function to go", lambda: alice.call("POST", path, more)[1].get("code") == "FUNCTION_NOT_FOUND")
        group = f"/v2/taskgroup/{gone['task_group_id']}"
        until("the empty group to go", lambda: alice.call("GET", group)[0] == 404)
        with contextlib.closing(sqlite3.connect(f"{(relay.state / 'relay.db').as_uri()}?mode=ro", uri=True)) as look:
            until("the user endpoint to go", lambda: look.execute("SELECT count(*) FROM ueps").fetchone() == (1,))
        lab.answer(request.uep_id, "started")
        uep = FakeUep(lab, request, token).join()
        uep.credit(1)
        (task,) = uep.take(1)
        assert task.task_id == waits["tasks"][function][0]
        assert uep.functions == {function: b"used"}  # which stays for the tasks that need it


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
