"""Every waiting state says why: a code, a sentence, and since when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from mep_wire import messages
from mep_wire.errors import RelayUnavailable
from mep_wire.identity import Identity
from mep_wire.limits import START_REQUEST_LIFETIME_S
from mep_wire.states import TaskState, UepState
from mep_wire.waits import SENTENCES, WaitCode
from relay.dispatch.live_state import ManagerLink
from relay.dispatch.manager_handlers import CLOCK_SKEW_WARN_S
from relay.link.base import Peer
from tests.unit.relay.test_dispatch_failures import Scene
from tests.unit.relay.test_task_fates import Lost


def _lost_manager(scene: Scene) -> None:
    scene.dispatcher._managers.gone(scene.manager, "cut")


def _never_a_manager(scene: Scene) -> None:
    del scene.dispatcher.live.managers[scene.uep.record.endpoint_id]


def _many_starts(scene: Scene) -> None:
    scene.dispatcher.starts._has_room = lambda _uep: False  # type: ignore[method-assign]
    scene.dispatcher.starts.want(scene.uep)


def _asked(scene: Scene) -> None:
    scene.dispatcher.starts.want(scene.uep)


def _starting(scene: Scene) -> None:
    scene.uep.go(UepState.STARTING)
    scene.uep.starting, scene.uep.asked = True, b"i" * 16


def _queued(scene: Scene) -> None:
    _starting(scene)
    message = messages.StartQueued(uep_id="u", position=7, asked=b"i" * 16)
    scene.dispatcher.starts.placed(scene.manager, message)


def _joining(scene: Scene) -> None:
    _starting(scene)
    answer = messages.StartAnswer(uep_id="u", outcome="started", code="", text="", correlation_id="", asked=b"i" * 16)
    scene.dispatcher.starts.answered(scene.manager, answer)


def _linked(scene: Scene) -> None:
    scene.uep.peer, scene.uep.state = Peer(b"u", b"u", 0.0), UepState.ONLINE


def _away(scene: Scene) -> None:
    scene.uep.state = UepState.DISCONNECTED


def _ending(scene: Scene) -> None:
    _linked(scene)
    scene.uep.state = UepState.DRAINING


def _said(code: str) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        _linked(scene)
        credit = messages.Credit(grant=0, trouble="Slurm job 7: PENDING (Resources)", trouble_code=code)
        scene.dispatcher._ueps.credit(scene.uep, credit)

    return act


STATES: dict[WaitCode, list[Callable[[Scene], None]]] = {
    WaitCode.ENDPOINT_OFFLINE: [_lost_manager, _never_a_manager],
    WaitCode.START_LIMIT: [_many_starts],
    WaitCode.START_ASKED: [_asked, _starting],
    WaitCode.START_QUEUED: [_queued],
    WaitCode.START_JOINING: [_joining],
    WaitCode.PROCESS_AWAY: [_away],
    WaitCode.PROCESS_ENDING: [_ending],
    WaitCode.TASKS_AHEAD: [_linked],
    WaitCode.JOB_PENDING: [_said("JOB_PENDING")],
    WaitCode.BLOCKS_FAILING: [_said("BLOCKS_FAILING")],
    WaitCode.ENGINE_TROUBLE: [_said("ENGINE_TROUBLE"), _said("")],
}


@pytest.mark.parametrize(("code", "act"), [(code, act) for code, acts in STATES.items() for act in acts])
def test_a_queued_task_says_why(code: WaitCode, act: Callable[[Scene], None]) -> None:
    async def run() -> None:
        scene, began = Scene(), time.time()
        act(scene)
        why = scene.why
        assert why.code == code
        assert why.text and "{" not in why.text
        assert why.since <= time.time()
        if code not in (WaitCode.PROCESS_AWAY, WaitCode.PROCESS_ENDING, WaitCode.TASKS_AHEAD):
            assert why.since >= scene.dispatcher.live.up_since or why.since == 0.0 <= began
        scene.uep.set_timer(None)

    asyncio.run(run())


def test_a_task_that_was_sent_says_so() -> None:
    async def run() -> None:
        scene = Lost(TaskState.DISPATCHED)
        assert scene.why.code == WaitCode.WORKERS_BUSY

    asyncio.run(run())


def test_no_code_is_left_out() -> None:
    the_sdks, tested_with_tasks = WaitCode.ARGUMENTS_PENDING, WaitCode.WAITS_FOR_TASK
    assert {*STATES, WaitCode.WORKERS_BUSY, the_sdks, tested_with_tasks} == set(WaitCode) == set(SENTENCES)


def test_a_task_that_runs_or_has_ended_waits_for_nothing() -> None:
    async def run() -> None:
        scene = Scene()
        for state in set(TaskState) - {TaskState.QUEUED, TaskState.DISPATCHED}:
            assert scene.dispatcher.why_waiting(scene.uep.row, state) is None

    asyncio.run(run())


def test_the_beginning_of_a_wait_stays_while_its_code_does() -> None:
    async def run() -> None:
        scene = Scene()
        handlers, now = scene.dispatcher._ueps, time.time()
        _linked(scene)

        def says(code: str, text: str, since: float) -> float:
            credit = messages.Credit(grant=0, trouble=text, trouble_code=code, trouble_since=since)
            handlers.credit(scene.uep, credit)
            assert scene.why.text == text
            return scene.why.since

        assert says("JOB_PENDING", "PENDING (Priority)", now - 100) == now - 100
        assert says("JOB_PENDING", "PENDING (Resources)", now) == now - 100
        assert now <= says("ENGINE_TROUBLE", "x", now + 1e6) <= time.time(), "its clock may be ahead"

    asyncio.run(run())


@pytest.mark.parametrize("skew", [-600.0, 600.0, 0.0])
def test_clocks_are_compared_at_the_hello(skew: float, caplog: Any) -> None:
    async def run() -> None:
        scene = Scene()
        link = ManagerLink(endpoint_id="e", peer=Peer(b"m", b"m", 0.0), epoch=b"e")
        with caplog.at_level("WARNING", "relay"):
            scene.dispatcher._managers._compare_clocks(link, time.time() + skew)
        assert abs(link.skew_s - skew) < CLOCK_SKEW_WARN_S
        said = [one for one in caplog.messages if "clock" in one]
        assert len(said) == bool(skew)
        assert all(("ahead of" in one) == (skew > 0) for one in said)

    asyncio.run(run())


def test_a_skew_that_is_warned_of_is_less_than_a_request_lives() -> None:
    assert CLOCK_SKEW_WARN_S < START_REQUEST_LIFETIME_S


def test_a_store_that_cannot_write_is_the_reason() -> None:
    async def run() -> None:
        scene, began = Scene(), time.time()
        _lost_manager(scene)
        scene.store._write.execute("PRAGMA query_only = 1")
        with pytest.raises(RelayUnavailable):
            scene.do(lambda tx: tx.add_account("b", Identity(id="j", username="bob")))
        assert scene.why.code == "RELAY_UNAVAILABLE"
        assert "store" in scene.why.text and scene.why.since >= began
        scene.store._write.execute("PRAGMA query_only = 0")
        scene.do(lambda tx: tx.add_account("b", Identity(id="j", username="bob")))
        assert scene.why.code == WaitCode.ENDPOINT_OFFLINE

    asyncio.run(run())
