"""`Dispatcher.submit`: a submission is taken as a whole or refused as a whole."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from mep_wire import messages
from mep_wire.errors import IdConflict, StorageFull, TooManyTasks
from mep_wire.ids import user_endpoint_id, uuid7
from mep_wire.states import TaskState
from relay.dispatch.open_tasks import RECOUNT_S, OpenTasks
from relay.dispatch.submissions import PersonLimits, Submission
from relay.store.records import Caller, NewTask
from tests.unit.relay.test_dispatch_failures import Scene

ALICE = Caller(account_id="a", identity_id="i")


def submission(scene: Scene, count: int, *, payload: bytes = b"p", **fields: Any) -> Submission:
    tasks = [NewTask(task_id=uuid7().bytes, function=scene.task.function, payload=payload) for _ in range(count)]
    values: dict[str, Any] = {
        "caller": ALICE,
        "endpoint_id": scene.manager.endpoint_id,
        "config": {"nodes": 1},
        "runtime": {},
        "group_id": str(uuid.uuid4()),
        "tasks": tasks,
    }
    return Submission(**{**values, **fields})


def test_tasks_are_stored_counted_and_their_user_endpoint_is_asked_for() -> None:
    async def run() -> None:
        scene = Scene()
        wanted = submission(scene, 3)
        assert await scene.dispatcher.submit(wanted) == ""
        stored = scene.store.tasks([task.task_id for task in wanted.tasks])
        assert [task.state for task in stored] == [TaskState.QUEUED] * 3
        with pytest.raises(TooManyTasks, match="4 tasks are already waiting"):  # one was there
            scene.dispatcher.live.open_tasks.check("a", "", 1, 4)
        await scene.spoken()
        assert [type(one) for one in scene.sent()] == [messages.SignedStart]
        known = scene.store.uep(user_endpoint_id(scene.manager.endpoint_id, "a", {"nodes": 1}, {}))
        assert known is not None
        assert known.row == stored[0].uep_row

    asyncio.run(run())


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (PersonLimits(open_tasks=3), TooManyTasks),
        (PersonLimits(open_tasks_at_endpoint=3), TooManyTasks),
        (PersonLimits(stored_bytes=10), StorageFull),
        (None, IdConflict),
    ],
)
def test_a_refused_submission_leaves_nothing(limits: PersonLimits | None, error: type[Exception]) -> None:
    async def run() -> None:
        scene = Scene(limits)
        wanted = submission(scene, 3, payload=b"p" * 4)
        if limits is None:  # a group of another person
            scene.do(lambda tx: tx.add_tasks("b", wanted.group_id, scene.uep.row, [], 0, 1.0))
        with pytest.raises(error):
            await scene.dispatcher.submit(wanted)
        assert scene.store.tasks([task.task_id for task in wanted.tasks]) == []
        with pytest.raises(TooManyTasks, match="1 tasks are already waiting"):
            scene.dispatcher.live.open_tasks.check("a", "", 1, 1)
        assert scene.link_.sent == []

    asyncio.run(run())


def test_one_endpoints_limit_leaves_the_others_and_ends_make_room() -> None:
    async def run() -> None:
        scene = Scene(PersonLimits(open_tasks_at_endpoint=3))
        first = submission(scene, 2)  # one was there
        await scene.dispatcher.submit(first)
        with pytest.raises(TooManyTasks):
            await scene.dispatcher.submit(submission(scene, 1))
        await scene.dispatcher.submit(submission(scene, 3, endpoint_id=str(uuid.uuid4())))
        await scene.dispatcher.cancel(scene.store.briefs([first.tasks[0].task_id]))
        await scene.dispatcher.submit(submission(scene, 1))
        with pytest.raises(TooManyTasks):
            await scene.dispatcher.submit(submission(scene, 1))

    asyncio.run(run())


def test_ends_that_were_not_seen_are_counted_before_anybody_is_refused() -> None:
    async def run() -> None:
        scene, now = Scene(), [0.0]
        counts = OpenTasks(scene.store, lambda: now[0])
        counts.check("a", "", 1, 2)
        counts.changed("a", scene.manager.endpoint_id, 1)  # and its end, which is not told here
        with pytest.raises(TooManyTasks):
            counts.check("a", "", 1, 2)
        now[0] = RECOUNT_S + 1.0
        counts.check("a", "", 1, 2)

    asyncio.run(run())
