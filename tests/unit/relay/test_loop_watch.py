"""The watch over the event loop notices a call that waits, and names it."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from relay import loop_watch
from relay.loop_watch import LoopWatch
from relay.store.sqlite import SqliteStore
from tests.support.waiting import until_async


def test_a_call_that_waits_in_the_loop_is_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> LoopWatch:
        watch = LoopWatch()
        watch.start()
        store = SqliteStore(None)
        store.submit(lambda _: threading.Event().wait(1.5)).result()  # in memory: in this thread
        await until_async("a stall", lambda: watch.stalls)
        watch.stop()
        return watch

    with caplog.at_level(logging.WARNING, "relay"):
        watch = asyncio.run(run())
    assert watch.longest_s > 1.0
    fields = caplog.records[0].fields  # type: ignore[attr-defined]
    assert caplog.records[0].getMessage() == "event loop: stood still" and fields["seconds"] >= 1.0
    assert fields["where"].startswith("relay.store.group_commit:")
    assert "Commits._attempt (in Condition.wait)" in fields["where"]


def test_a_loop_that_is_on_time_is_not_spoken_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_watch, "BEAT_S", 0.01)
    monkeypatch.setattr(loop_watch, "STALL_S", 60.0)

    async def run() -> LoopWatch:
        watch = LoopWatch()
        watch.start()
        await asyncio.sleep(0.1)
        watch.stop()
        return watch

    assert asyncio.run(run()).stalls == 0
    assert caplog.text == ""


def test_a_lateness_is_forgotten_after_a_while() -> None:
    now = [100.0]

    async def run() -> None:
        watch = LoopWatch(lambda: now[0])
        watch._next(now[0])
        now[0] += loop_watch.BEAT_S + 5.0
        assert watch.longest_s == pytest.approx(5.0)  # while it lasts
        watch._beats()
        now[0] += loop_watch.BEAT_S + 1.0
        watch._beats()
        assert watch.longest_s == pytest.approx(5.0)
        now[0] += loop_watch.FORGET_S - 1.0
        watch._due = now[0]
        assert watch.longest_s == pytest.approx(1.0)
        watch._timer.cancel()

    asyncio.run(run())
