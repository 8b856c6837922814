"""A process lost at its start, or later, is asked for again after growing pauses, for as long as is documented."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from mep_wire import messages
from mep_wire.errors import StartFailed, StartInterrupted, UserEndpointLost, UserEndpointUnstable
from mep_wire.states import TaskState, UepState
from relay.dispatch import start_trouble
from relay.dispatch.start_trouble import MAX_PAUSE_S, MAX_TROUBLE_S, TRANSIENT, StartTrouble
from tests.unit.relay.test_dispatch_failures import Scene
from tests.unit.relay.test_task_fates import REFUSED, Lost

KILLED = StartInterrupted(reason="killed by signal 9")


class Restarts(Scene):
    """A user endpoint; the manager answers its starts one by one."""

    async def asked(self) -> None:
        await self.spoken()
        assert [type(one) for one in self.sent()] == [messages.SignedStart]

    def says(self, code: str, text: str) -> None:
        answer = messages.StartAnswer(uep_id="u", outcome="refused", code=code, text=text, correlation_id="c")
        self.dispatcher.starts.answered(self.manager, answer)


def test_pauses_double_up_to_a_limit_with_jitter() -> None:
    trouble = StartTrouble()
    pauses = []
    for at in range(20):
        trouble.note(float(at), "it was killed")
        pauses.append(trouble.pause(first_at_once=False))
    ideal = [min(MAX_PAUSE_S, 0.25 * 2**n) for n in range(20)]
    assert all(0.8 * want <= pause <= 1.2 * want for pause, want in zip(pauses, ideal, strict=True))
    assert len({pause / want for pause, want in zip(pauses, ideal, strict=True)}) > 10


def test_the_first_loss_of_a_running_process_costs_no_pause() -> None:
    trouble = StartTrouble()
    trouble.note(0.0, "it was killed")
    assert trouble.pause(first_at_once=True) == 0.0
    trouble.note(1.0, "it was killed")
    assert trouble.pause(first_at_once=True) > 0.0


def test_trouble_ends_after_its_time_and_old_trouble_does_not_count() -> None:
    trouble = StartTrouble()
    assert not trouble.note(0.0, "a")
    assert not trouble.note(MAX_TROUBLE_S - 1, "b")
    assert trouble.note(MAX_TROUBLE_S, "c")
    assert not trouble.note(3 * MAX_TROUBLE_S, "d")
    assert trouble.count == 1


@pytest.mark.parametrize("code", sorted(TRANSIENT))
def test_a_process_lost_at_its_start_is_asked_for_again_while_tasks_wait(code: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(start_trouble, "FIRST_PAUSE_S", 0.001)

    async def run() -> None:
        scene = Restarts()
        scene.dispatcher.starts.want(scene.uep)
        for times in itertools.count(1):
            await scene.asked()
            scene.says(code, KILLED.text)
            assert scene.state is TaskState.QUEUED
            assert scene.uep.trouble.count == times
            assert KILLED.text in scene.why.text and "again in" in scene.why.text
            if times == 6:
                break
        await scene.asked()
        scene.uep.trouble.since -= MAX_TROUBLE_S
        scene.says(code, KILLED.text)
        await asyncio.sleep(0.02)
        (task,) = scene.store.tasks([scene.task.task_id])
        assert (task.state, task.code) == (TaskState.FAILED, code)
        assert KILLED.text in task.text and "happened 7 times" in task.text
        assert (scene.uep.starting, scene.uep.timer, scene.uep.trouble.count) == (False, None, 0)

    asyncio.run(run())


def test_only_what_configuration_or_policy_says_is_final() -> None:
    async def run() -> None:
        scene = Restarts()
        scene.dispatcher.starts.want(scene.uep)
        await scene.asked()
        scene.says(StartFailed.code, StartFailed(stage="SETUID").text)
        await asyncio.sleep(0.02)
        (task,) = scene.store.tasks([scene.task.task_id])
        assert (task.state, task.code) == (TaskState.FAILED, StartFailed.code)

    asyncio.run(run())


def test_the_person_reads_why_a_start_came_to_nothing() -> None:
    async def run() -> None:
        scene = Restarts()
        scene.dispatcher.starts.want(scene.uep)
        await scene.asked()
        busy = messages.StartAnswer(
            uep_id="u", outcome="unavailable", code="SITE_BUSY", text="The site is full.", correlation_id=""
        )
        scene.dispatcher.starts.answered(scene.manager, busy)
        assert scene.why.text.startswith("The site is full. The relay will ask the site again in ")

    asyncio.run(run())


def test_processes_that_die_after_their_join_are_asked_for_after_growing_pauses() -> None:
    async def run() -> None:
        scene = Lost(TaskState.QUEUED)
        scene.dispatcher.live.managers[scene.manager.endpoint_id] = scene.manager
        await scene.ended()
        assert scene.uep.starting and scene.uep.timer is None  # the first at once
        scene.uep.starting = False
        scene.uep.set_process(b"k" * 32, b"j" * 16)
        scene.uep.go(UepState.ABSENT)
        scene.uep.go(UepState.ONLINE)
        await scene.ended()
        assert not scene.uep.starting and scene.uep.timer is not None
        assert scene.state is TaskState.QUEUED
        scene.uep.trouble.since -= MAX_TROUBLE_S
        scene.uep.set_timer(None)
        scene.uep.set_process(b"k" * 32, b"j" * 16)
        scene.uep.go(UepState.ONLINE)
        await scene.ended()
        assert (scene.state, scene.code) == (TaskState.FAILED, UserEndpointUnstable.code)
        assert "was not started" in scene.text and "that ran the task" not in scene.text
        assert "Its process was killed. This has happened 3 times" in scene.text

    asyncio.run(run())


def test_a_task_that_waits_again_after_a_lost_process_may_have_begun_until_it_is_sent() -> None:
    """The next process joins, is lost before it is sent the task, and no further one can be started."""

    async def run() -> None:
        scene = Lost(TaskState.DISPATCHED)
        await scene.ended()
        await scene.join_next()
        assert (scene.state, scene.doubtful) == (TaskState.QUEUED, {scene.row})
        await scene.ended()
        await scene.dispatcher.starts._refuse(scene.uep, REFUSED)
        assert scene.code == UserEndpointLost.code
        assert "not known whether" in scene.text
        assert not scene.doubtful

    asyncio.run(run())


def test_a_join_of_which_the_link_broke_leaves_the_doubt_to_its_hello() -> None:
    async def run() -> None:
        scene = Lost(TaskState.DISPATCHED)
        await scene.ended()
        await scene.join_next(linked=False)
        assert scene.state is TaskState.DISPATCHED
        await scene.hello()
        assert (scene.state, scene.doubtful) == (TaskState.QUEUED, {scene.row})
        await scene.hello()
        assert scene.doubtful == {scene.row}, "and it stays until the task is sent"

    asyncio.run(run())


def test_what_crossed_a_cut_of_the_link_is_not_doubtful() -> None:
    async def run() -> None:
        scene = Lost(TaskState.DISPATCHED)
        await scene.hello()
        assert (scene.state, scene.doubtful) == (TaskState.QUEUED, set())

    asyncio.run(run())


def test_a_task_that_the_next_process_gave_back_has_not_begun() -> None:
    async def run() -> None:
        scene = Lost(TaskState.DISPATCHED)
        await scene.ended()
        await scene.join_next()
        scene.do(lambda tx: tx.take_queued(scene.uep.row, 1, 1000))
        scene.dispatcher.delivery.returned(scene.uep, [scene.row])
        await scene.ended()
        await scene.dispatcher.starts._refuse(scene.uep, REFUSED)
        assert scene.code == REFUSED.code

    asyncio.run(run())


def test_a_manager_cannot_fill_the_relays_memory_with_ids_that_it_invents() -> None:
    async def run() -> None:
        scene = Restarts()
        for number in range(1000):
            answer = messages.StartAnswer(
                uep_id=f"invented {number}", outcome="started", code="", text="", correlation_id=""
            )
            scene.dispatcher.starts.answered(scene.manager, answer)
        assert not scene.manager.running

    asyncio.run(run())


def test_the_person_reads_what_the_engine_tries_again_for_as_long_as_its_process_is_there() -> None:
    async def run() -> None:
        scene = Lost(TaskState.DISPATCHED)
        handlers = scene.dispatcher._ueps
        trouble = "blocks of workers failed 3 times and will be tried again"
        handlers.credit(scene.uep, messages.Credit(grant=0, trouble=trouble))
        assert (scene.why.code, scene.why.text) == ("ENGINE_TROUBLE", trouble)
        handlers.credit(scene.uep, messages.Credit(grant=1))
        assert scene.why.code == "WORKERS_BUSY"
        handlers.credit(scene.uep, messages.Credit(grant=0, trouble=trouble))
        await scene.ended()
        assert trouble not in scene.why.text

    asyncio.run(run())
