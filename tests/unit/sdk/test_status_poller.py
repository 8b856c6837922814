"""Which tasks are asked for when the stream may have lost something, and when."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from mep_sdk import status_poller
from mep_sdk.status_poller import StatusPoller
from mep_wire.errors import RelayUnavailable

WAIT_S = 10


class Relay:
    """Knows no task, and answers with `refusals` first."""

    def __init__(self) -> None:
        self.asked: queue.Queue[int] = queue.Queue()
        self.refusals: list[Exception] = []
        self.most = 10_000

    def endings(self, task_ids: Sequence[str], *, retry_for_s: float) -> tuple[list[Any], list[str], list[str]]:
        self.asked.put(len(task_ids))
        if self.refusals:
            raise self.refusals.pop()
        return [], list(task_ids[: self.most]), list(task_ids[self.most :])


def start(
    relay: Relay, count: int, monkeypatch: pytest.MonkeyPatch, **constants: float
) -> tuple[StatusPoller, list[str]]:
    for name, value in constants.items():
        monkeypatch.setattr(status_poller, name, value)
    found: list[str] = []
    left = [f"task-{number}" for number in range(count)]

    def take(ended: list[Any], missing: list[str]) -> None:
        found.extend(missing)
        del left[: len(missing)]

    thread = StatusPoller(relay, lambda: list(left), take)  # type: ignore[arg-type]  # as much of a client as it uses
    thread.start()
    return thread, found


def end(thread: StatusPoller) -> None:
    thread.stop()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_asks_now_and_then_in_pages(monkeypatch):
    relay = Relay()
    thread, found = start(relay, 600, monkeypatch, EVERY_S=0.05)
    assert [relay.asked.get(timeout=WAIT_S) for _ in range(3)] == [256, 256, 88]
    time.sleep(0.2)  # nothing is pending now
    end(thread)
    assert relay.asked.empty()
    assert len(found) == 600


def test_asks_soon_after_a_break_and_not_before(monkeypatch):
    relay = Relay()
    thread, _ = start(relay, 1, monkeypatch, EVERY_S=600, SETTLE_S=0.01)
    time.sleep(0.1)
    assert relay.asked.empty()
    thread.soon()
    assert relay.asked.get(timeout=WAIT_S) == 1
    end(thread)


def test_asks_again_for_what_was_too_much_for_one_answer(monkeypatch):
    relay = Relay()
    relay.most = 80
    thread, found = start(relay, 200, monkeypatch, EVERY_S=0.05)
    assert [relay.asked.get(timeout=WAIT_S) for _ in range(3)] == [200, 120, 40]
    end(thread)
    assert found == [f"task-{number}" for number in range(200)]


def test_a_relay_that_tells_nothing_is_not_asked_at_once(monkeypatch):
    relay = Relay()
    relay.most = 0
    thread, found = start(relay, 3, monkeypatch, EVERY_S=0.3)
    assert relay.asked.get(timeout=WAIT_S) == 3
    time.sleep(0.1)
    assert relay.asked.empty()
    end(thread)
    assert not found


def test_a_relay_that_does_not_answer_is_asked_again_later(monkeypatch):
    relay = Relay()
    relay.refusals = [RelayUnavailable(reason="starting"), RelayUnavailable(reason="full")]
    thread, found = start(relay, 1, monkeypatch, EVERY_S=0.02)
    assert [relay.asked.get(timeout=WAIT_S) for _ in range(3)] == [1, 1, 1]
    end(thread)
    assert found == ["task-0"]


def test_ends_while_it_waits():
    before = threading.active_count()
    thread = StatusPoller(Relay(), list, lambda *_: None)  # type: ignore[arg-type]
    thread.start()
    end(thread)
    assert threading.active_count() == before
