"""Executor.flush(): without a timeout it waits until the submitted tasks have arrived, and no longer."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from mep_sdk import Client, Executor, submitter
from mep_sdk.errors import ForkedExecutor
from mep_wire.errors import MepError
from tests.support.waiting import until

GROUP = "00000000-0000-4000-8000-000000000001"
SILENT_S = 0.5


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Executor:
    monkeypatch.setattr(submitter, "_SILENT_S", SILENT_S)
    return Executor(GROUP, client=Client("http://127.0.0.1:9", "token"), batch_size=1)


def test_a_relay_that_says_nothing_ends_the_wait() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "token", retry_for_s=1.0)
        executor = Executor(GROUP, client=client)
        executor.submit(pow, 2, 3)
        said: list[bool] = []
        waiting = threading.Thread(target=lambda: said.append(executor.flush()), daemon=True)
        began = time.monotonic()
        waiting.start()
        waiting.join(14.0)
        took_s = time.monotonic() - began
    kept = executor._session
    kept.stop(cancel_futures=False)
    kept._fail_futures(list(kept._pending.values()), MepError(text="the test is over"))
    assert said == [False]
    assert took_s < 14.0


def test_a_slow_relay_is_waited_for(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []

    def send(items: list[submitter.Item]) -> None:
        time.sleep(SILENT_S * 0.6)
        sent.extend(items)

    monkeypatch.setattr(executor._session, "_send", send)
    for number in range(4):
        executor.submit(pow, 2, number)
    assert executor.flush() is True
    assert len(sent) == 4
    executor._session._pending.clear()


def test_a_forked_child_is_told_that_its_parent_sends(executor: Executor) -> None:
    with executor._session._change:  # as another thread may hold it at the fork
        child = os.fork()
        if child == 0:
            try:
                executor.flush()
            except ForkedExecutor:
                os._exit(0)
            os._exit(1)
    try:
        until("the child's end", lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    finally:
        os.kill(child, 9)
        _, status = os.waitpid(child, 0)
    assert status == 0
