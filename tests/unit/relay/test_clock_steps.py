"""After its host's clock was set ahead, a relay removes nothing at once: the clock may be wrong."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import pytest

from relay.dispatch.dispatcher import Dispatcher
from relay.retention import ClockSteps, Periods, Sweeper
from relay.store.base import Store

YEAR_S = 365 * 86400.0


class Host:
    """A host with a clock that is set."""

    def __init__(self) -> None:
        self.up_s, self.shift_s = 0.0, 0.0

    def clock(self) -> float:
        return 1e9 + self.up_s + self.shift_s

    def uptime(self) -> float:
        return self.up_s


def test_a_step_ahead_is_believed_after_an_hour() -> None:
    host = Host()
    steps = ClockSteps(host.clock, host.uptime)
    for seconds, is_in_doubt in ((0.0, False), (500.0, False), (500.0, False), (YEAR_S, True)):
        host.shift_s += seconds
        assert steps.is_in_doubt() is is_in_doubt, f"{host.shift_s:.0f} s ahead"
    host.up_s += 3500.0
    assert steps.is_in_doubt()
    host.up_s += 200.0
    assert not steps.is_in_doubt()


def test_a_clock_that_is_set_back_again_leaves_no_doubt() -> None:
    host = Host()
    steps = ClockSteps(host.clock, host.uptime)
    for shift_s, is_in_doubt in ((YEAR_S, True), (0.0, False), (YEAR_S, True), (-YEAR_S, False), (0.0, True)):
        host.shift_s = shift_s
        assert steps.is_in_doubt() is is_in_doubt


class NoStore:
    """A store that may not be changed."""

    def submit(self, _change: object) -> None:
        raise LookupError("removes something")


def test_nothing_is_removed_while_the_clock_is_in_doubt() -> None:
    host = Host()
    periods = Periods(retention_s=1.0, lifetime_s=0.0, unused_s=0.0)
    sweeper = Sweeper(cast("Store", NoStore()), cast("Dispatcher", None), periods, lambda: time.time() + host.shift_s)
    with pytest.raises(LookupError):
        asyncio.run(sweeper.ended())
    host.shift_s = YEAR_S
    asyncio.run(sweeper.ended())
