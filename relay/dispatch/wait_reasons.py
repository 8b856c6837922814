"""Says why a task of a user endpoint waits: a code, a sentence and since when, from the relay's live state.

Every waiting state has an answer. No I/O. Called by the dispatcher for the HTTP API.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mep_wire.errors import RelayUnavailable
from mep_wire.states import TaskState, UepState
from mep_wire.waits import Wait, WaitCode, wait
from relay.dispatch.live_state import LiveState, Uep

STORE_FAILS = "The relay has not been able to store anything since {since}. It tries again by itself."


def wait_of(live: LiveState, uep: Uep, state: TaskState, has_room: Callable[[Uep], bool]) -> Wait:
    """Return why a task in `state`, QUEUED or DISPATCHED, waits. `has_room`: whether a start may be asked for."""
    if since := live.store.failing_since():
        return Wait(RelayUnavailable.code, STORE_FAILS.format(since=calendar(since)), since)
    if uep.peer is not None:
        return _at_its_process(uep, state)
    if uep.record.endpoint_id not in live.managers:
        since = live.away_since.get(uep.record.endpoint_id, live.up_since)
        return wait(WaitCode.ENDPOINT_OFFLINE, since, since=calendar(since))
    return _for_its_process(live, uep, has_room)


def _at_its_process(uep: Uep, state: TaskState) -> Wait:
    if uep.engine_trouble is not None:
        return uep.engine_trouble
    if uep.state is UepState.DRAINING:
        return wait(WaitCode.PROCESS_ENDING)
    return wait(WaitCode.WORKERS_BUSY if state is TaskState.DISPATCHED else WaitCode.TASKS_AHEAD)


def _for_its_process(live: LiveState, uep: Uep, has_room: Callable[[Uep], bool]) -> Wait:
    """Return the reason while a process is started or tried again, the last failure first."""
    now = live.loop.time()
    starting = uep.state is UepState.STARTING
    if starting and uep.queue_position and not uep.start_answered:
        return wait(WaitCode.START_QUEUED, uep.queued_since, position=uep.queue_position)
    if starting and uep.start_answered:
        return wait(WaitCode.START_JOINING, uep.asked_since)
    if uep.trouble.count:
        since = time.time() - (now - uep.trouble.since)
        return Wait(uep.trouble.code, f"{uep.trouble.so_far(now)} {next_try(uep, now)}", since)
    if uep.last_text:
        return Wait(uep.last_code, f"{uep.last_text} {next_try(uep, now)}", uep.answered_since)
    if uep.state is UepState.DISCONNECTED:
        return wait(WaitCode.PROCESS_AWAY, uep.record.seen_at, since=calendar(uep.record.seen_at))
    if not uep.starting and not has_room(uep):
        return wait(WaitCode.START_LIMIT, uep.asked_since)
    return wait(WaitCode.START_ASKED, uep.asked_since)


def next_try(uep: Uep, now: float) -> str:
    """Return, for the person, what the relay does about a start that came to nothing. `now` is the loop's time."""
    if uep.starting or uep.timer is None:
        return "The relay has asked the site again."
    return f"The relay will ask the site again in {max(1, round(uep.timer.when() - now))} s."


def calendar(at: float) -> str:
    """Return a time as a person reads it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
