"""The fate of the tasks of a process that is gone: each step of the table, for each state of a task."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

from mep_wire import PROTOCOL_VERSION, messages
from mep_wire.errors import StartRequestRefused, UserEndpointLost, UserEndpointUnstable
from mep_wire.states import TaskState, UepState
from relay.dispatch.live_state import Joining, Uep
from relay.dispatch.task_fates import FATES, Fate, LossStep
from relay.dispatch.task_transitions import Loss, fail_or_retry, reconcile
from relay.link.base import Peer
from tests.unit.relay.test_dispatch_failures import Scene

REFUSED = StartRequestRefused(reason="the site is misconfigured")
STATES = [TaskState.QUEUED, TaskState.DISPATCHED, TaskState.RUNNING]


class Lost(Scene):
    """A user endpoint with a process that has joined, and a task in one of its states there."""

    def __init__(self, state: TaskState) -> None:
        super().__init__()
        self.row = self.store.tasks([self.task.task_id])[0].row
        key = os.urandom(32)
        self.do(lambda tx: tx.add_join(self.uep.row, b"h", time.time() + 60, time.time()))
        assert self.do(lambda tx: tx.enrol(self.uep.row, b"h", key, time.time(), b"i" * 16))
        self.uep.set_process(key, b"i" * 16)
        self.uep.settled = key
        self.uep.go(UepState.ONLINE)
        self.uep.peer = Peer(b"u", key, 0.0)
        del self.dispatcher.live.managers[self.manager.endpoint_id]
        if state is not TaskState.QUEUED:
            self.do(lambda tx: tx.take_queued(self.uep.row, 1, 1000))
        if state is TaskState.RUNNING:
            self.do(lambda tx: tx.record_started(self.uep.row, [self.row], time.time()))
        self.uep.has_queued = state is TaskState.QUEUED

    async def ended(self) -> None:
        await self.dispatcher._process_loss.process_exited(self.uep, "KILLED", "Its process was killed.")

    async def given_up(self) -> None:
        await self.ended()
        await self.dispatcher.starts._refuse(self.uep, REFUSED)

    async def told(self) -> list[int]:
        """The next process joins, and holds nothing; return its lost tasks."""
        await self.ended()
        return self.do(lambda tx: reconcile(tx, self.uep.row, [])).held.lost

    async def join_next(self, *, linked: bool = True) -> None:
        """The next process joins, and is not sent anything; without `linked` its link breaks in that moment."""
        self.do(lambda tx: tx.add_join(self.uep.row, b"n", time.time() + 60, time.time()))
        assert self.store.uep("u") is not None
        joining = Joining(
            record=self.uep.record, offered=b"n", incarnation=b"n" * 16, held=[], default_attempts=1, most_attempts=0
        )
        peer = Peer(os.urandom(32), b"n", 0.0)
        peer.session = joining if linked else None
        assert await self.dispatcher._ueps.enrol(peer, joining)
        await asyncio.sleep(0)

    async def hello(self) -> None:
        """The process that has the task comes back after a cut, and has not received the task."""
        peer = Peer(self.uep.record.link_key, b"v", 0.0)
        self.dispatcher._ueps.hello(peer, messages.UepHello(protocol=PROTOCOL_VERSION, uep_id="u", held=[]))
        await asyncio.sleep(0)

    @property
    def doubtful(self) -> set[int]:
        """The rows that wait and may have begun."""
        return set(self.do(lambda tx: tx.queued_doubtful(self.uep.row)))

    @property
    def code(self) -> str:
        return self.store.tasks([self.task.task_id])[0].code

    @property
    def text(self) -> str:
        return self.store.tasks([self.task.task_id])[0].text


@pytest.mark.parametrize("state", STATES)
def test_the_end_of_a_process_decides_nothing(state: TaskState) -> None:
    async def run() -> None:
        scene = Lost(state)
        await scene.ended()
        assert FATES[LossStep.ENDED][state] is Fate.STAYS
        assert scene.state is state
        assert scene.uep.needed

    asyncio.run(run())


@pytest.mark.parametrize("state", STATES)
def test_the_next_process_tells(state: TaskState) -> None:
    async def run() -> None:
        scene = Lost(state)
        lost = await scene.told()
        fate = FATES[LossStep.TOLD][state]
        assert (fate is Fate.ATTEMPT_LOST) == (lost == [scene.row])
        assert scene.state is (TaskState.RUNNING if fate is Fate.ATTEMPT_LOST else TaskState.QUEUED)

    asyncio.run(run())


@pytest.mark.parametrize("state", STATES)
def test_only_what_was_never_sent_ends_as_not_begun(state: TaskState) -> None:
    async def run() -> None:
        scene = Lost(state)
        await scene.given_up()
        assert scene.state is TaskState.FAILED
        fate = FATES[LossStep.GIVEN_UP][state]
        assert scene.code == (REFUSED.code if fate is Fate.NOT_BEGUN else UserEndpointLost.code)
        assert ("not known whether" in scene.text) == (fate is Fate.MAYBE_BEGUN)
        assert REFUSED.text in scene.text
        assert not scene.uep.needed

    asyncio.run(run())


@pytest.mark.parametrize("state", STATES)
def test_after_a_row_of_losses_each_task_reads_its_own_truth(state: TaskState) -> None:
    async def run() -> None:
        scene = Lost(state)
        await scene.ended()
        await scene.dispatcher.starts._give_up(scene.uep, UserEndpointLost(reason="It was killed."))
        begun = "that ran the task ended before the task did: It was killed."
        maybe = "that ran the task ended before the task did: its process ended, and it is not known whether it had "
        said = {
            TaskState.QUEUED: (UserEndpointUnstable.code, "The task was not started: "),
            TaskState.DISPATCHED: (UserEndpointLost.code, f"The user endpoint {maybe}begun there. It was killed."),
            TaskState.RUNNING: (UserEndpointLost.code, f"The user endpoint {begun}"),
        }
        code, text = said[state]
        assert (scene.code, scene.text[: len(text)]) == (code, text)
        assert "It was killed." in scene.text

    asyncio.run(run())


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (TaskState.QUEUED, "was not started within"),
        (TaskState.DISPATCHED, "may have begun it"),
        (TaskState.RUNNING, "it had begun, its process was lost"),
    ],
)
def test_a_task_that_waited_for_too_long_reads_whether_it_may_have_begun(state: TaskState, said: str) -> None:
    async def run() -> None:
        scene = Lost(state)
        await scene.ended()
        lost = Loss(error=UserEndpointLost(reason="killed"), default_attempts=2, most_attempts=0)
        if state is TaskState.RUNNING:
            scene.do(lambda tx: fail_or_retry(tx, scene.uep.row, [scene.row], lost))
        elif state is TaskState.DISPATCHED:
            await scene.join_next()
        assert scene.state is TaskState.QUEUED
        await scene.dispatcher.delivery.expire(scene.uep, 1e-6)
        assert scene.state is TaskState.EXPIRED
        assert said in scene.text
        assert ("not started" in scene.text) == (state is TaskState.QUEUED)

    asyncio.run(run())


def test_what_was_sent_is_remembered_by_a_relay_that_was_restarted() -> None:
    async def run() -> None:
        scene = Lost(TaskState.DISPATCHED)
        await scene.ended()
        record = scene.store.uep("u")
        assert record is not None
        scene.dispatcher.live.ueps.clear()
        scene.dispatcher.live._known.clear()
        uep: Uep = scene.dispatcher.live.uep(record)
        assert uep is not scene.uep and uep.unsettled
        await scene.dispatcher.starts._refuse(uep, REFUSED)
        assert scene.code == UserEndpointLost.code

    asyncio.run(run())


def test_a_task_to_be_cancelled_ends_with_the_process_it_was_sent_to() -> None:
    async def run() -> None:
        scene = Lost(TaskState.DISPATCHED)
        scene.do(lambda tx: tx.ask_cancel(scene.uep.row, [scene.row]))
        await scene.ended()
        assert scene.state is TaskState.CANCELLED
        assert not scene.uep.needed

    asyncio.run(run())


def test_an_end_stored_late_does_not_unsettle_the_next_process() -> None:
    async def run() -> None:
        scene = Lost(TaskState.RUNNING)
        live = scene.dispatcher.live
        submit_retrying = live.submit_retrying

        class Slow:
            """The live state; the next process joins while the end is being stored."""

            def __getattr__(self, name: str) -> Any:
                return getattr(live, name)

            async def submit_retrying(self, change: Any) -> Any:
                done = await submit_retrying(change)
                scene.uep.set_process(b"k" * 32, b"j" * 16)
                return done

        endings = scene.dispatcher._process_loss
        endings._live = Slow()  # type: ignore[assignment]
        await scene.ended()
        assert not scene.uep.unsettled

    asyncio.run(run())
