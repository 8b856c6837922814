"""Removes expired rows, a page at a time: ended tasks, their arguments, and unused objects.

Runs beside everything else in the relay's event loop; a page is small enough not to delay requests. Called by the
server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from relay.dispatch.dispatcher import Dispatcher
from relay.dispatch.live_state import durable, repeat
from relay.log import logger
from relay.store.base import Store, Tx

T = TypeVar("T")

INTERVAL_S = 60.0
INPUTS_INTERVAL_S = 15.0
PAGE = 2000
INPUTS_PAGE = 250
COMPACT_PAGES = 500
"""Pages of the database that are given back at once: 2 MB."""
EXPIRED_STAYS_S = 3600.0
"""How long an expired token or document stays."""
_PAUSE_S = 0.1
_SHORT_PAUSE_S = 0.02
_DAY_S = 86400.0
_STEP_S = 600.0
_BELIEVED_AFTER_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Periods:
    """In seconds: how long ended tasks are kept, how long one may wait (0: for ever), and how long unused functions,
    task groups and user endpoints are kept (0: for ever)."""

    retention_s: float
    lifetime_s: float
    unused_s: float
    delivered_s: float = float("inf")
    """How long ended tasks are kept that their person has been sent."""


class ClockSteps:
    """Notices that the host's clock was set ahead. A wrong clock would remove results that are to be kept for days."""

    def __init__(self, clock: Callable[[], float] = time.time, uptime: Callable[[], float] | None = None) -> None:
        self._clock, self._uptime = clock, uptime or (lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
        self._believed = clock() - self._uptime()
        self._since: float | None = None

    def is_in_doubt(self) -> bool:
        """Whether it was set ahead by more than ten minutes, and less than an hour ago."""
        now = self._uptime()
        ahead = self._clock() - now - self._believed
        if ahead > _STEP_S and self._since is None:
            self._since = now
            logger.error("the clock was set ahead: nothing old is removed for an hour", seconds=round(ahead))
        if ahead > _STEP_S and self._since is not None and now - self._since < _BELIEVED_AFTER_S:
            return True
        self._believed, self._since = self._believed + ahead, None
        return False


class Sweeper:
    """See the module."""

    def __init__(
        self, store: Store, dispatcher: Dispatcher, periods: Periods, clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._dispatcher, self._periods = store, dispatcher, periods
        self._clock, self._steps = clock, ClockSteps(clock)
        self._inputs_after = self._group_after = 0
        self._looked_for_strays = False

    async def run(self) -> None:
        """Sweep for ever."""
        what = "old records stay"  # the disk may be full, and this makes room once it can be written
        await asyncio.gather(repeat(self.ended, INTERVAL_S, what), repeat(self.inputs, INPUTS_INTERVAL_S, what))

    async def _do(self, change: Callable[[Tx], T]) -> T:
        return await durable(self._store.submit(change))

    async def inputs(self) -> None:
        """Drop the arguments of ended tasks. Raises RelayUnavailable."""
        while True:
            before = self._inputs_after
            self._inputs_after = await self._do(lambda tx, at=before: tx.drop_inputs(at, INPUTS_PAGE))  # type: ignore[misc]
            if self._inputs_after == before:
                return
            await asyncio.sleep(_SHORT_PAUSE_S)

    async def ended(self) -> None:
        """Remove old endings and unused objects, and expire tasks that waited too long. Raises RelayUnavailable."""
        if self._steps.is_in_doubt():
            return
        now = self._clock()
        await self._tasks(now - self._periods.retention_s)
        await self._do(lambda tx: tx.sweep_tokens(now - EXPIRED_STAYS_S, PAGE))
        await self._do(lambda tx: tx.sweep_documents(now - EXPIRED_STAYS_S, PAGE))
        if self._periods.delivered_s < self._periods.retention_s:
            await self._tasks(now - self._periods.delivered_s, delivered=True)
        await self._dispatcher.note_seen()
        if self._periods.lifetime_s:
            await self._dispatcher.expire(self._periods.lifetime_s)
        if self._periods.unused_s:
            await self._unused(now, now - self._periods.unused_s)
        await self._do(lambda tx: tx.compact(COMPACT_PAGES))
        # Last: the storage of large payloads may be away while the database is there.
        await self._dispatcher.payloads.collect()
        if not self._looked_for_strays:
            await self._dispatcher.payloads.remove_strays()
            self._looked_for_strays = True

    async def _tasks(self, ended_before: float, *, delivered: bool = False) -> None:
        """Remove tasks that ended before this time, a page at a time, from the oldest end on."""
        after = 0
        while True:
            swept = await self._do(lambda tx, at=after: tx.sweep(ended_before, PAGE, after=at, delivered=delivered))  # type: ignore[misc]
            after = swept.last
            if not after:
                return
            await asyncio.sleep(_PAUSE_S if swept.count else _SHORT_PAUSE_S)

    async def _unused(self, now: float, before: float) -> None:
        """Remove a page of objects unused for long."""
        here = set(self._dispatcher.live.by_row)
        followed = self._dispatcher.streams.rows()
        removed = await self._do(lambda tx: tx.sweep_ueps(before, here, PAGE))
        self._group_after = await self._do(lambda tx: tx.sweep_groups(self._group_after, followed, PAGE))
        deleted = await self._do(lambda tx: tx.sweep_functions(before, now, PAGE))
        if removed or deleted:
            logger.info("unused for long and removed", user_endpoints=removed, functions=deleted)
        if self._periods.lifetime_s:  # else a task may wait for a deleted function for ever
            last_use = now - max(self._periods.lifetime_s, self._periods.retention_s) - _DAY_S
            await self._do(lambda tx: tx.purge_functions(last_use, PAGE))
