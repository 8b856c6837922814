"""Nothing accepted is lost: with the endpoint stopped, the relay killed, the manager killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.support.waiting import until

RESULT_S = 60


def slow_square(number: int) -> int:
    import time

    time.sleep(0.3)
    return number * number


def _child_of(parent: int, module: str) -> int | None:
    """Return the child of a process that runs `python -m MODULE`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
                above = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            if above == parent and module.encode() in words:
                return int(entry.name)
    return None


def test_a_task_submitted_while_the_endpoint_is_stopped_runs_when_it_starts(own_place: Any) -> None:
    with own_place.executor(own_place.anybody) as executor:
        future = executor.submit(pow, 3, 3)
        client = own_place.client(own_place.anybody)
        until("accepted task", lambda: _status(client, future) == "waiting-for-ep")
        own_place.endpoint.start()
        assert future.result(timeout=RESULT_S) == 27


def _status(client: Any, future: Any) -> str:
    try:
        return str(client.get_task(future.task_id)["status"])
    except Exception as error:  # not accepted yet
        return type(error).__name__


def test_the_relay_killed_between_accept_and_result_loses_nothing(own_place: Any) -> None:
    own_place.endpoint.start()
    with own_place.executor(own_place.anybody) as executor:
        assert executor.submit(pow, 2, 2).result(timeout=RESULT_S) == 4
        futures = [executor.submit(slow_square, number) for number in range(12)]
        client = own_place.client(own_place.anybody)
        until("running task", lambda: _status(client, futures[0]) in {"running", "success", "waiting-for-nodes"})
        own_place.site.relay.kill()
        assert not all(future.done() for future in futures)
        time.sleep(0.5)  # results arrive while the relay is down
        own_place.site.relay.start()
        assert [future.result(timeout=RESULT_S) for future in futures] == [n * n for n in range(12)]


def test_killing_the_manager_leaves_a_running_user_endpoint_alone(own_place: Any) -> None:
    own_place.endpoint.start()
    monitor = int(own_place.endpoint.status()["pid"])
    with own_place.executor(own_place.anybody) as executor:
        assert executor.submit(pow, 2, 2).result(timeout=RESULT_S) == 4
        before = own_place.new_pids({})
        futures = [executor.submit(slow_square, number) for number in range(8)]
        manager = _child_of(monitor, "mep.manager")
        assert manager is not None
        os.kill(manager, signal.SIGKILL)
        assert [future.result(timeout=RESULT_S) for future in futures] == [n * n for n in range(8)]
        until("new manager", lambda: _child_of(monitor, "mep.manager") not in {None, manager})
        assert own_place.pids() == before
    until("link", own_place.endpoint.is_up)
    with own_place.executor(own_place.anybody, project="another") as executor:
        assert executor.submit(pow, 2, 5).result(timeout=RESULT_S) == 32


def test_stopping_the_endpoint_ends_its_user_endpoints(own_place: Any) -> None:
    own_place.endpoint.start()
    with own_place.executor(own_place.anybody) as executor:
        assert executor.submit(pow, 2, 2).result(timeout=RESULT_S) == 4
        pids = list(own_place.new_pids({}).values())
        own_place.endpoint.stop()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_an_endpoint_runs_through_a_rotation_of_the_relays_key(own_place: Any) -> None:
    """Its mapper has the old key pinned when the first start comes after the rotation; then it takes the new key."""
    own_place.endpoint.start()
    relay = own_place.site.relay
    relay.stop()
    relay.run("key", "rotate")
    relay.start()
    with own_place.executor(own_place.anybody) as executor:
        assert executor.submit(pow, 2, 5).result(timeout=RESULT_S) == 32
    own_place.endpoint.register_again()
    own_place.endpoint.stop()
    own_place.endpoint.start()
    with own_place.executor(own_place.anybody) as executor:
        assert executor.submit(pow, 2, 6).result(timeout=RESULT_S) == 64
