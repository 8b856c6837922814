"""A relay that accepts connections and never answers: a person's call without a timeout ends after ten seconds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mep_sdk import Client, Executor
from mep_wire.errors import MepError, RelayUnreachable
from mep_wire.ids import uuid7

GROUP = "00000000-0000-4000-8000-000000000001"
LONGEST_S = 10.0
SLACK_S = 4.0


@pytest.fixture
def url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def add(a: int, b: int) -> int:
    return a + b


def durations(calls: dict[str, Callable[[], object]]) -> dict[str, tuple[float, object]]:
    found: dict[str, tuple[float, object]] = {}

    def run(name: str, call: Callable[[], object]) -> None:
        began = time.monotonic()
        try:
            outcome = call()
        except RelayUnreachable as error:
            outcome = error
        found[name] = (time.monotonic() - began, outcome)

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in calls.items()]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + LONGEST_S + SLACK_S
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    return found


def test_nothing_that_a_person_calls_waits_longer(url: str) -> None:
    client = Client(url, "token", retry_for_s=1.0)
    batch = client.create_batch()
    batch.add(str(uuid7()))
    sent = Executor(GROUP, client=client)
    (pending,) = sent._session.adopt(GROUP, ["00000000-0000-7000-8000-000000000001"])
    on_its_way = Executor(GROUP, client=client)
    future = on_its_way.submit(add, 1, 2)
    leaving = Executor(GROUP, client=client)
    leaving._session.adopt(GROUP, ["00000000-0000-7000-8000-000000000002"])
    calls: dict[str, Callable[[], object]] = {
        "cancel what the relay has": pending.cancel,
        "cancel what is on its way": future.cancel,
        "shutdown without waiting": lambda: leaving.shutdown(wait=False, cancel_futures=True),
        "reload_tasks": Executor(GROUP, client=client).reload_tasks,
        "register_function": lambda: client.register_function(add),
        "batch_run": lambda: client.batch_run(GROUP, batch),
        "get_version": client.get_version,
        "get_task": lambda: client.get_task(GROUP),
        "get_batch_result": lambda: client.get_batch_result([GROUP]),
        "cancel": lambda: client.cancel(GROUP),
    }
    found = durations(calls)
    for executor in (sent, on_its_way, leaving):  # their threads end with the connections
        session = executor._session
        session.stop(cancel_futures=False)
        session._fail_futures(list(session._pending.values()), MepError(text="the test is over"))
    assert found.keys() == calls.keys(), f"still waiting: {calls.keys() - found.keys()}"
    assert found["cancel what the relay has"][1] is False
    for name in ("register_function", "batch_run", "get_version", "get_task", "cancel"):
        assert isinstance(found[name][1], RelayUnreachable), name
