"""Dispatch goes on after an unforeseen failure: no slot is lost, no task waits for ever."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mep_wire import codec, messages
from mep_wire.errors import RelayUnavailable, TaskExpired, UserEndpointSilent
from mep_wire.identity import Identity
from mep_wire.ids import uuid7
from mep_wire.states import TaskState, UepState
from mep_wire.waits import Wait
from relay import retention
from relay.dispatch import deadlines, dispatcher, start_requests, task_delivery
from relay.dispatch.dispatcher import Dispatcher
from relay.dispatch.live_state import ManagerLink, Uep
from relay.dispatch.submissions import PersonLimits
from relay.link.base import Peer, PlaneHandler
from relay.store.base import Tx
from relay.store.records import EndpointRecord, FunctionRecord, NewTask, TaskEnding, UepRecord
from relay.store.sqlite import SqliteStore

T = TypeVar("T")


class NotingPlane:
    """A link layer that records the messages sent."""

    address = "tcp://nowhere"

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.spoken = asyncio.Event()

    def start(self, handler: PlaneHandler) -> None:
        """Nothing to begin."""

    def send(self, peer: Peer, frame: bytes) -> bool:
        self.sent.append(frame)
        self.spoken.set()
        return True

    def writable(self, peer: Peer) -> bool:
        return True

    def drop(self, peer: Peer) -> None:
        """Nothing to forget."""

    def stop(self) -> None:
        """Nothing to end."""


class FailingStore(SqliteStore):
    """A store that fails its next changes with an unexpected error."""

    failures = 0

    def submit(self, change: Callable[[Tx], T]) -> Future[T]:
        if self.failures:
            self.failures -= 1
            future: Future[T] = Future()
            future.set_exception(LookupError("nobody foresaw this"))
            return future
        return super().submit(change)


class Scene:
    """A dispatcher with one user endpoint, one task and a manager."""

    def __init__(self, limits: PersonLimits | None = None) -> None:
        self.store, self.link_ = FailingStore(None), NotingPlane()
        self.dispatcher = Dispatcher(self.store, self.link_, Ed25519PrivateKey.generate(), limits)
        endpoint_id = str(uuid.uuid4())
        unseal = X25519PrivateKey.generate().public_key().public_bytes_raw()
        endpoint = EndpointRecord(
            endpoint_id=endpoint_id, owner="a", name="lab", display_name="", multi_user=True, public=False,
            allowed_functions=None, user_config_schema=None, metadata={}, link_key=b"k" * 32, unseal_key=unseal,
            created_at=1.0,
        )  # fmt: skip
        function = FunctionRecord(
            function_id="f", owner="a", name="f", code=b"code", public=False, description="", metadata={}, created_at=1
        )
        record = UepRecord(
            row=0, uep_id="u", endpoint_id=endpoint_id, account_id="a", identity_id="i", config={}, runtime={}
        )
        self.do(lambda tx: tx.add_account("a", Identity(id="i", username="alice")))
        self.do(lambda tx: tx.put_endpoint(endpoint))
        self.do(lambda tx: tx.put_function(function))
        record = self.do(lambda tx: tx.put_uep(record))
        ref = self.store.function_ref("f")
        assert ref is not None
        self.task = NewTask(task_id=uuid7().bytes, function=ref, payload=b"p")
        self.do(lambda tx: tx.add_tasks("a", "g", record.row, [self.task], 0, time.time()))
        self.manager = ManagerLink(endpoint_id=endpoint_id, peer=Peer(b"m", b"m", 0.0), epoch=b"e" * 32)
        self.dispatcher.live.managers[endpoint_id] = self.manager
        self.uep: Uep = self.dispatcher.live.uep(record)

    def do(self, change: Callable[[Tx], T]) -> T:
        return self.store.submit(change).result()

    @property
    def why(self) -> Wait:
        """Why its task waits, as it is in the store."""
        found = self.dispatcher.why_waiting(self.uep.row, self.state)
        assert found is not None
        return found

    @property
    def state(self) -> TaskState:
        return self.store.tasks([self.task.task_id])[0].state

    def sent(self) -> list[Any]:
        found, self.link_.sent = self.link_.sent, []
        kinds = {messages.SignedStart: codec.decode_to_manager, messages.Tasks: codec.decode_to_uep}
        return [kinds[messages.Tasks if b"\xa5Tasks" in frame[:8] else messages.SignedStart](frame) for frame in found]

    async def spoken(self) -> None:
        await asyncio.wait_for(self.link_.spoken.wait(), 5)
        self.link_.spoken.clear()

    def says_running(self) -> None:
        answer = messages.StartAnswer(uep_id="u", outcome="already_running", code="", text="", correlation_id="")
        self.dispatcher.starts.answered(self.manager, answer)


def test_a_start_that_fails_unforeseen_is_tried_again(monkeypatch: Any) -> None:
    monkeypatch.setattr(start_requests, "FIRST_RETRY_S", 0.01)

    async def run() -> None:
        scene = Scene()
        scene.store.failures = 1
        scene.dispatcher.starts.want(scene.uep)
        await asyncio.sleep(0)
        assert not scene.uep.starting
        await scene.spoken()
        assert [type(one) for one in scene.sent()] == [messages.SignedStart]

    asyncio.run(run())


@pytest.mark.parametrize("code", ["NOT_ADMITTED_NOW", "SITE_BUSY", "MAPPER_UNAVAILABLE"])
def test_a_start_that_the_site_puts_off_gives_its_reason_until_it_runs(code: str) -> None:
    async def run() -> None:
        scene = Scene()
        scene.dispatcher.starts.want(scene.uep)
        await scene.spoken()
        assert scene.why.code == "START_ASKED"
        later = messages.StartAnswer(
            uep_id="u", outcome="unavailable", code=code, text="Down until noon.\x1b[2J", correlation_id=""
        )
        scene.dispatcher.starts.answered(scene.manager, later)
        assert scene.why.code == code
        assert scene.why.text.startswith("Down until noon.\\x1b[2J ")
        scene.uep.set_timer(None)
        scene.dispatcher.starts.want(scene.uep)
        await scene.spoken()
        assert scene.why.code == code, "while it is tried again"
        started = messages.StartAnswer(uep_id="u", outcome="started", code="", text="", correlation_id="")
        scene.dispatcher.starts.answered(scene.manager, started)
        assert scene.why.code == "START_JOINING"
        scene.uep.set_timer(None)

    asyncio.run(run())


def test_tasks_that_could_not_be_taken_from_the_queue_are_sent_later(monkeypatch: Any) -> None:
    monkeypatch.setattr(task_delivery, "STORE_RETRY_S", 0.01)

    async def run() -> None:
        scene = Scene()
        scene.uep.go(UepState.ONLINE)
        scene.uep.peer = Peer(b"u", b"u", 0.0)
        scene.store.failures = 1
        scene.dispatcher.delivery.credit(scene.uep, 5)
        await asyncio.sleep(0)
        assert (scene.uep.has_queued, scene.uep.credit, scene.uep.pumping) == (True, 5, False)
        await scene.spoken()
        assert [len(one.tasks) for one in scene.sent()] == [1]
        assert (scene.state, scene.uep.credit) == (TaskState.DISPATCHED, 4)

    asyncio.run(run())


def test_tasks_that_nobody_takes_expire_and_the_streams_hear_of_it(monkeypatch: Any) -> None:
    monkeypatch.setattr(retention, "INTERVAL_S", 0.01)

    async def run() -> None:
        scene = Scene()
        group = scene.store.group("g")
        assert group is not None
        heard = scene.dispatcher.streams.join(group.row)
        await scene.dispatcher.expire(60.0)
        assert (scene.state, heard.is_set()) == (TaskState.QUEUED, False)
        periods = retention.Periods(retention_s=86400.0, lifetime_s=1e-6, unused_s=86400.0)
        scene.store.failures = 1  # an unforeseen failure of one sweep ends no other
        sweeper = asyncio.create_task(retention.Sweeper(scene.store, scene.dispatcher, periods).run())
        await asyncio.wait_for(heard.wait(), 5)
        sweeper.cancel()
        (task,) = scene.store.tasks([scene.task.task_id])
        assert (task.state, task.code) == (TaskState.EXPIRED, TaskExpired.code)
        assert not scene.uep.has_queued
        await asyncio.gather(sweeper, return_exceptions=True)
        assert scene.dispatcher.live.ueps == {}

    asyncio.run(run())


def test_tasks_expire_while_the_storage_of_large_payloads_is_away(monkeypatch: Any) -> None:
    async def run() -> None:
        scene = Scene()

        async def collect() -> int:
            raise RelayUnavailable(reason="its storage of large payloads is away")

        monkeypatch.setattr(scene.dispatcher.payloads, "collect", collect)
        periods = retention.Periods(retention_s=86400.0, lifetime_s=1e-6, unused_s=86400.0)
        with pytest.raises(RelayUnavailable, match="large payloads"):
            await retention.Sweeper(scene.store, scene.dispatcher, periods).ended()
        assert scene.state is TaskState.EXPIRED

    asyncio.run(run())


def test_deadlines_are_looked_at_again_once_the_store_can_be_read(monkeypatch: Any) -> None:
    monkeypatch.setattr(deadlines, "STORE_RETRY_S", 0.01)

    def away(*_: Any) -> Any:
        raise RelayUnavailable(reason="its database is away")

    async def run() -> None:
        scene = Scene()
        late = msgspec.structs.replace(scene.task, task_id=uuid7().bytes, deadline=time.time())
        scene.do(lambda tx: tx.add_tasks("a", "g", scene.uep.row, [late], 0, time.time()))
        group = scene.store.group("g")
        assert group is not None
        heard = scene.dispatcher.streams.join(group.row)
        failed = asyncio.Event()
        with monkeypatch.context() as patch:
            patch.setattr(scene.store, "overdue", away)
            patch.setattr(scene.store, "next_deadline", away)
            patch.setattr(deadlines.logger, "error", lambda *_, **__: failed.set())
            queue = deadlines.QueueDeadlines(scene.dispatcher.live, scene.dispatcher.delivery)
            queue.expect(late.deadline)
            await asyncio.wait_for(failed.wait(), 5)
        await asyncio.wait_for(heard.wait(), 5)
        assert scene.store.tasks([late.task_id])[0].state is TaskState.EXPIRED

    asyncio.run(run())


def test_what_a_site_that_never_comes_back_had_taken_expires_and_says_what_is_known(monkeypatch: Any) -> None:
    monkeypatch.setattr(dispatcher, "SETTLE_S", 0.0)

    async def run() -> None:
        scene = Scene()
        (row,) = [task.row for task in scene.store.tasks([scene.task.task_id])]
        more = NewTask(task_id=uuid7().bytes, function=scene.task.function, payload=b"")
        added = scene.store.submit(lambda tx: tx.add_tasks("a", "g", scene.uep.row, [more], 0, time.time())).result()
        scene.store.submit(lambda tx: tx.take_queued(scene.uep.row, 9, 999)).result()
        scene.store.submit(lambda tx: tx.record_started(scene.uep.row, [row], 1.0)).result()
        scene.uep.has_queued, scene.uep.unsettled, scene.uep.peer = False, True, Peer(b"u", b"u", 0.0)
        scene.dispatcher.live.saw([scene.uep])
        await asyncio.sleep(0.01)
        await scene.dispatcher.expire(0.005)  # long, but its link is up
        assert scene.state is TaskState.RUNNING
        scene.uep.peer = None
        await scene.dispatcher.expire(3600.0)  # away, but not for so long
        assert scene.state is TaskState.RUNNING
        await scene.dispatcher.expire(0.005)
        begun, sent = scene.store.tasks([scene.task.task_id, more.task_id])
        assert (begun.state, begun.code, sent.state) == (TaskState.EXPIRED, TaskExpired.code, TaskState.EXPIRED)
        assert "whether it finished is not known" in begun.text
        assert "not known to have begun" in sent.text
        late = TaskEnding(row=added.rows[0], state=TaskState.SUCCESS, payload=b"late")
        settled = scene.store.submit(lambda tx: tx.record_endings(scene.uep.row, [late])).result()
        assert settled.ended == 0

    asyncio.run(run())


def test_tasks_wait_for_a_process_without_a_link_for_a_while_and_no_longer(monkeypatch: Any) -> None:
    monkeypatch.setattr(start_requests, "FIRST_RETRY_S", 0.01)

    async def run() -> None:
        scene = Scene()
        scene.dispatcher.starts.want(scene.uep)
        for _ in range(2):
            await scene.spoken()
            scene.says_running()
            assert scene.state is TaskState.QUEUED
        await scene.spoken()
        scene.uep.unjoined_since -= start_requests.MAX_UNJOINED_S
        scene.says_running()
        await asyncio.sleep(0.02)
        (task,) = scene.store.tasks([scene.task.task_id])
        assert (task.state, task.code) == (TaskState.FAILED, UserEndpointSilent.code)
        assert (scene.uep.state, scene.uep.starting, scene.uep.timer) == (UepState.ABSENT, False, None)

    asyncio.run(run())
