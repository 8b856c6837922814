"""What is asked for when the stream may have lost something, and when."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from mep_sdk import recheck
from mep_sdk.recheck import Recheck
from mep_wire.errors import PayloadTooLarge, RelayUnavailable

WAIT_S = 10


class Relay:
    """Knows no task, and says what `refusals` has first."""

    def __init__(self) -> None:
        self.asked: queue.Queue[int] = queue.Queue()
        self.refusals: list[Exception] = []
        self.most = 10_000
        self.large = ""

    def endings(self, task_ids: Sequence[str], *, retry_for_s: float) -> tuple[list[Any], list[str]]:
        self.asked.put(len(task_ids))
        if self.refusals:
            raise self.refusals.pop()
        if len(task_ids) > self.most or self.large in task_ids:
            raise PayloadTooLarge(what="answer", size=2, limit=1)
        return [], list(task_ids)


def start(relay: Relay, count: int, monkeypatch: pytest.MonkeyPatch, **constants: float) -> tuple[Recheck, list[str]]:
    for name, value in constants.items():
        monkeypatch.setattr(recheck, name, value)
    found: list[str] = []
    left = [f"task-{number}" for number in range(count)]

    def take(ended: list[Any], missing: list[str]) -> None:
        found.extend(missing)
        del left[: len(missing)]

    thread = Recheck(relay, lambda: list(left), take)  # type: ignore[arg-type]  # as much of a client as it uses
    thread.start()
    return thread, found


def end(thread: Recheck) -> None:
    thread.stop()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_asks_now_and_then_in_pages(monkeypatch):
    relay = Relay()
    thread, found = start(relay, 600, monkeypatch, EVERY_S=0.05)
    assert [relay.asked.get(timeout=WAIT_S) for _ in range(3)] == [256, 256, 88]
    time.sleep(0.2)  # nothing is pending any more
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


def test_asks_for_fewer_where_the_answer_is_too_large(monkeypatch):
    relay = Relay()
    relay.most = 64
    thread, found = start(relay, 200, monkeypatch, EVERY_S=0.05)
    assert [relay.asked.get(timeout=WAIT_S) for _ in range(7)] == [200, 100, 50, 50, 100, 50, 50]
    end(thread)
    assert found == [f"task-{number}" for number in range(200)]


def test_one_result_that_is_too_large_keeps_no_other_waiting(monkeypatch):
    relay = Relay()
    relay.large = "task-1"
    thread, found = start(relay, 3, monkeypatch, EVERY_S=0.05)
    assert [relay.asked.get(timeout=WAIT_S) for _ in range(5)] == [3, 1, 2, 1, 1]
    end(thread)
    assert found[:2] == ["task-0", "task-2"]


def test_a_relay_that_does_not_answer_is_asked_again_later(monkeypatch):
    relay = Relay()
    relay.refusals = [RelayUnavailable(reason="starting"), RelayUnavailable(reason="full")]
    thread, found = start(relay, 1, monkeypatch, EVERY_S=0.02)
    assert [relay.asked.get(timeout=WAIT_S) for _ in range(3)] == [1, 1, 1]
    end(thread)
    assert found == ["task-0"]


def test_ends_while_it_waits():
    before = threading.active_count()
    thread = Recheck(Relay(), list, lambda *_: None)  # type: ignore[arg-type]
    thread.start()
    end(thread)
    assert threading.active_count() == before
