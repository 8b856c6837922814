"""The code as it was before some of its faults were mended: the simulation has to find each.

Each is a patch of one place. It shows that the simulation's draws reach the fault, and that its rules know it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from mep_wire.errors import MepError
from mep_wire.states import TaskState
from relay.dispatch import live_state, task_delivery, task_fates
from relay.dispatch.live_state import Joining, LiveState, Uep
from relay.dispatch.task_transitions import NOTHING
from relay.dispatch.uep_handlers import UepHandlers
from relay.link.base import Peer
from relay.store.records import UepRecord
from relay.store.sqlite import SqliteTx

from .site import Site


def _ends_name_no_process() -> list[Any]:
    """A manager says that a user endpoint has ended, not which of its processes."""
    return [mock.patch.object(Site, "names_processes", new=False)]


def _lost_as_not_begun() -> list[Any]:
    """A start that fails ends what was sent to the last process as if it had not begun."""

    def why_failed(state: TaskState, error: MepError, *, doubtful: bool = False) -> MepError:
        return error

    return [mock.patch.object(task_fates, "why_failed", why_failed)]


def _two_records() -> list[Any]:
    """A record that was forgotten while a step held it is made a second time."""

    def uep(self: LiveState, record: UepRecord) -> Uep:
        known = self.ueps.get(record.uep_id)
        if known is None:
            known = self.ueps[record.uep_id] = self.by_row[record.row] = live_state.Uep(record)
            known.has_queued = self.store.has_queued(record.row)
            known.unsettled = not record.link_key and self.store.has_active(record.row)
        return known

    return [mock.patch.object(LiveState, "uep", uep), mock.patch.object(LiveState, "keep", lambda _self, _uep: None)]


def _joined_with_a_broken_link() -> list[Any]:
    """A link that breaks while its join is being stored still counts."""

    async def enrol(self: UepHandlers, peer: Peer, joining: Joining) -> bool:
        record, now = joining.record, time.time()
        enrolled = await self._live.submit_retrying(
            lambda tx: tx.enrol(record.row, joining.offered, peer.key, now, joining.incarnation)
        )
        if enrolled:
            uep = self._live.uep(record)
            uep.set_process(peer.key, joining.incarnation)
            self._link_up(uep, peer)
            self._settle(uep, peer, joining.held)
        return enrolled

    return [mock.patch.object(UepHandlers, "enrol", enrol)]


def _no_doubt() -> list[Any]:
    """Tasks that wait again after a lost process are taken to have begun nowhere."""
    return [mock.patch.object(task_delivery, "end_doubtful", lambda tx, row, error: NOTHING)]


def _one_of_a_set_is_held() -> list[Any]:
    """Of tasks that wait for the same others, the first waits alone."""
    hold = SqliteTx.hold

    def first(self: SqliteTx, rows: Sequence[int], on_rows: Sequence[int]) -> None:
        hold(self, rows[:1], on_rows)

    return [mock.patch.object(SqliteTx, "hold", first)]


MUTANTS: dict[str, Callable[[], list[Any]]] = {
    "ends that name no process": _ends_name_no_process,
    "executed tasks reported as not begun": _lost_as_not_begun,
    "two records of one user endpoint": _two_records,
    "joined with a broken link": _joined_with_a_broken_link,
    "no doubt about what waits again": _no_doubt,
    "one of a set is held": _one_of_a_set_is_held,
}
"""The first three are points of the issue that asked for the simulation; it found the next two itself."""
