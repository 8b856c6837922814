"""The relay killed with SIGKILL at every stage of a task: started again on the same state, nothing is lost."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mep_wire import messages
from tests.support.fake_peer import FakeManager, FakeUep, Nothing
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.waiting import until


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path) as running:
        yield running


class Scene:
    """A relay with a person, an endpoint and a submitted task."""

    def __init__(self, relay: RelayProcess, count: int = 1) -> None:
        self.relay = relay
        self.alice = Person(relay, "alice")
        self.lab = FakeManager(relay, self.alice.token).hello()
        self.function = self.alice.function()
        self.answer = self.alice.submit(self.lab.endpoint_id, self.function, ["p"] * count)
        self.ids: list[str] = self.answer["tasks"][self.function]

    def crash(self, running: list[str] | None = None) -> None:
        """Kill the relay, start it again, and have the manager come back."""
        self.relay.kill()
        self.relay.start()
        self.lab.close()
        self.lab.connect()
        self.lab.hello(running)

    def back(self, uep: FakeUep, held: list[int]) -> None:
        uep.close()
        uep.connect()
        uep.hello(held)

    def statuses(self) -> list[str]:
        return [self.alice.task(task_id)["status"] for task_id in self.ids]


def test_killed_after_accepting(relay: RelayProcess) -> None:
    scene = Scene(relay)
    relay.kill()
    relay.start()
    scene.lab.close()
    scene.lab.connect()
    uep = scene.lab.hello().start()
    uep.credit(1)
    uep.finish(uep.take(1))
    assert scene.statuses() == ["success"]


def test_killed_while_a_task_runs(relay: RelayProcess) -> None:
    scene = Scene(relay)
    uep = scene.lab.start()
    uep.credit(1)
    tasks = uep.take(1)
    uep.send(messages.Started(rows=[tasks[0].row]))
    scene.crash([uep.uep_id])
    scene.back(uep, [tasks[0].row])
    uep.finish(tasks, b"value")
    assert scene.alice.task(scene.ids[0])["result"] == "value"
    stream = scene.alice.stream(scene.answer["task_group_id"])
    assert [one.payload for one in stream.results(1)] == [b"value"]
    stream.close()


def test_killed_before_a_result_is_durable(relay: RelayProcess) -> None:
    scene = Scene(relay, count=100)
    uep = scene.lab.start()
    uep.credit(100)
    tasks = uep.take(100)
    uep.send_results(tasks, b"value")
    relay.kill()  # some may be stored, all, or none
    relay.start()
    scene.lab.close()
    scene.lab.connect()
    scene.lab.hello([uep.uep_id])
    scene.back(uep, [task.row for task in tasks])
    uep.finish(tasks, b"value")  # its spool, sent again
    assert scene.statuses() == ["success"] * 100
    stream = scene.alice.stream(scene.answer["task_group_id"])
    results = stream.results(100)
    assert sorted(one.task_id for one in results) == sorted(scene.ids)
    with pytest.raises(TimeoutError):
        stream.next(timeout=0.3)
    stream.close()


def test_killed_while_tasks_were_on_their_way(relay: RelayProcess) -> None:
    scene = Scene(relay, count=3)
    uep = scene.lab.start()
    uep.credit(3)
    tasks = uep.take(3)
    scene.crash([uep.uep_id])
    scene.back(uep, [tasks[0].row])  # two never reached it
    uep.credit(2)
    assert uep.take(2) == tasks[1:]
    uep.finish(tasks)
    assert scene.statuses() == ["success"] * 3


def test_killed_during_a_start(relay: RelayProcess) -> None:
    scene = Scene(relay)
    request, token = scene.lab.take_start()
    scene.crash()
    scene.lab.take_start()  # the relay asks again, and is told that it runs already
    scene.lab.answer(request.uep_id, "already_running")
    uep = FakeUep(scene.lab, request, token).join()  # the first start's token is still good
    uep.credit(1)
    uep.finish(uep.take(1))
    assert scene.statuses() == ["success"]


def test_a_peer_that_does_not_notice_is_told_to_say_hello(relay: RelayProcess) -> None:
    scene = Scene(relay)
    uep = scene.lab.start()
    relay.kill()
    relay.start()
    uep.credit(1)  # ZeroMQ has connected again by itself
    answer = uep.expect(messages.Refused)
    assert (answer.code, answer.final) == ("HELLO_NEEDED", False)
    uep.hello([])
    uep.credit(1)
    uep.finish(uep.take(1))
    assert scene.statuses() == ["success"]


def test_a_process_that_ended_meanwhile_is_replaced(relay: RelayProcess) -> None:
    scene = Scene(relay, count=2)
    uep = scene.lab.start()
    uep.credit(2)
    tasks = uep.take(2)
    uep.send(messages.Started(rows=[tasks[0].row]))
    until("the running task", lambda: scene.statuses()[0] == "running")
    uep.close()
    scene.crash()
    scene.lab.ended(uep.uep_id, "KILLED", "killed")
    again = scene.lab.start()
    again.credit(2)
    assert [task.row for task in again.take(1)] == [tasks[1].row]
    again.finish(tasks[1:])
    assert scene.statuses() == ["failed", "success"]


def test_within_the_grace_time_a_missing_process_is_not_given_up(relay: RelayProcess) -> None:
    scene = Scene(relay)
    uep = scene.lab.start()
    uep.credit(1)
    tasks = uep.take(1)
    uep.send(messages.Started(rows=[tasks[0].row]))
    scene.crash([])  # a manager that has just started itself may not know it yet
    with pytest.raises(Nothing):
        scene.lab.take_start(wait_ms=500)
    scene.back(uep, [tasks[0].row])
    uep.finish(tasks)
    assert scene.statuses() == ["success"]


def test_killed_over_and_over_under_load(relay: RelayProcess) -> None:
    """Submissions that are answered are there, whenever the relay dies."""
    scene = Scene(relay)
    accepted: list[str] = list(scene.ids)
    for _ in range(3):
        for _ in range(20):
            answer = scene.alice.submit(scene.lab.endpoint_id, scene.function, ["p"] * 5)
            accepted += answer["tasks"][scene.function]
        relay.kill()
        relay.start()
    found = scene.alice.ok("POST", "/v2/batch_status", {"task_ids": accepted})
    assert len(found["results"]) == len(accepted) == 301
    assert found["missing"] == []
    with sqlite3.connect(relay.state / "relay.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_sigterm_ends_it_cleanly_with_streams_open(relay: RelayProcess) -> None:
    scene = Scene(relay)
    stream = scene.alice.stream(scene.answer["task_group_id"])
    before = time.monotonic()
    assert relay.stop() == 0
    assert time.monotonic() - before < 30
    assert not (relay.state / "relay.json").exists()
    assert "ended" in relay.log.read_text()
    stream.socket.close()
    relay.start()
    assert scene.statuses() == ["waiting-for-ep"]


def test_two_servers_cannot_run_on_one_state(relay: RelayProcess) -> None:
    second = relay.cli("serve", "--port", "0", "--link-port", "0", check=False)
    assert second.returncode == 1
    assert "another mep-relay serves" in second.stderr
    assert relay.request("GET", "/v2/version")[0] == 200


def test_a_port_that_is_taken_is_named(relay: RelayProcess, tmp_path: Path) -> None:
    taken = relay.url.rpartition(":")[2]
    other = RelayProcess(tmp_path / "other")
    told: Any = None
    (tmp_path / "other").mkdir()
    told = other.cli("serve", "--port", taken, "--link-port", "0", check=False)
    assert told.returncode == 1
    assert f"cannot listen on 127.0.0.1:{taken}" in told.stderr
    link = relay.link_address.rpartition(":")[2]
    told = other.cli("serve", "--port", "0", "--link-port", link, check=False)
    assert told.returncode == 1
    assert f"cannot listen on 127.0.0.1:{link}" in told.stderr
    assert "choose others with --port and --link-port" in told.stderr


def test_an_interrupt_from_the_keyboard_is_clean_too(relay: RelayProcess) -> None:
    relay._process.send_signal(signal.SIGINT)  # type: ignore[union-attr]
    try:
        assert relay._process.wait(timeout=10) == 0  # type: ignore[union-attr]
    except subprocess.TimeoutExpired:
        pytest.fail("it did not end")
