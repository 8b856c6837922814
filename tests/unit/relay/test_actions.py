"""Actions in a store that has changed since: tasks that are kept no longer, and accounts that became one."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from mep_wire.errors import ActionNotFinished, ActionNotFound
from mep_wire.identity import Identity
from mep_wire.states import TaskState
from relay.api import actions
from relay.api.http import Request
from relay.api.tasks import READ_PAGE
from relay.store.records import Caller, Document
from relay.store.sqlite import SqliteStore


class Scene:
    def __init__(self, age_s: float, release_after: str = "P30D", tasks: int = 1) -> None:
        self.store = SqliteStore(None)
        body = msgspec.msgpack.encode(
            {
                "action_id": "a", "digest": b"", "account_id": "one", "identity_id": "i",
                "task_ids": [uuid.uuid4().bytes for _ in range(tasks)], "label": "", "monitor_by": [], "manage_by": [],
                "release_after": release_after, "start_time": time.time() - age_s,
            }
        )  # fmt: skip
        document = Document(kind=actions.KIND, id="a", owner="one", body=body)
        self.store.submit(lambda tx: tx.add_document(document)).result()

    def ask(self, handler: Callable[..., Awaitable[Any]], account: str = "one") -> Any:
        async def answer() -> Any:
            service = SimpleNamespace(store=self.store, audit=SimpleNamespace(note=lambda *_, **__: None))
            return await handler(service, Request(Caller(account_id=account, identity_id="i"), ("a",), {}, None, False))

        return asyncio.run(answer())


def test_an_action_does_not_wait_for_tasks_that_are_kept_no_longer() -> None:
    scene = Scene(age_s=actions.SUBMITTED_S + 1)
    assert scene.ask(actions.status).status == "FAILED"
    scene.ask(actions.release)
    new = Scene(age_s=0)
    assert new.ask(actions.status).status == "ACTIVE"
    with pytest.raises(ActionNotFinished):
        new.ask(actions.release)


OLD_S = actions.SUBMITTED_S + 61


@pytest.mark.parametrize(
    ("age_s", "release_after", "released"),
    [
        (OLD_S, "PT1M", True),
        (OLD_S, "PT1H", True),
        (OLD_S, "PT2H", False),
        (OLD_S, "P30D", False),
        (600, "PT1M", False),
    ],
)
def test_an_action_is_released_when_its_request_said(age_s: float, release_after: str, *, released: bool) -> None:
    """An unfinished one is not. It is gone for those who ask at once, and for the store with the next sweep."""
    scene = Scene(age_s, release_after)
    if released:
        with pytest.raises(ActionNotFound):
            scene.ask(actions.status)
    else:
        assert scene.ask(actions.status).release_after == release_after
    assert asyncio.run(actions.sweep(scene.store, time.time())) == released
    assert (scene.store.document(actions.KIND, "a") is None) is released


def test_durations() -> None:
    assert actions._seconds("P1DT2H3M4S") == 86400 + 7200 + 180 + 4
    assert [actions._seconds(text) for text in ("P", "PT", "PT0S", "soon", "P1W", "-PT1H")] == [0.0] * 6


def test_a_sweep_reads_every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "SWEEP_PAGE", 2)
    scene = Scene(OLD_S, "PT1M")
    known = scene.store.document(actions.KIND, "a")
    assert known is not None
    for number in range(7):
        copy = msgspec.structs.replace(known, id=f"b{number}")
        scene.store.submit(lambda tx, copy=copy: tx.add_document(copy)).result()
    assert asyncio.run(actions.sweep(scene.store, time.time())) == 8
    assert scene.store.documents(actions.KIND) == []


def test_a_sweep_that_fails_unforeseen_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "SWEEP_EVERY_S", 0.0)
    swept = asyncio.Event()

    async def sweep(_store: Any, _now: float) -> None:
        monkeypatch.setattr(actions, "sweep", second)
        raise LookupError("nobody foresaw this")

    async def second(_store: Any, _now: float) -> None:
        swept.set()

    async def run() -> None:
        monkeypatch.setattr(actions, "sweep", sweep)
        sweeper = asyncio.create_task(actions.sweep_for_ever(SqliteStore(None)))
        await asyncio.wait_for(swept.wait(), 5)
        sweeper.cancel()

    asyncio.run(run())


def test_a_large_action_is_read_a_few_tasks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand tasks read at once would hold up all other requests."""
    scene = Scene(OLD_S, "PT1M", tasks=10 * READ_PAGE)
    read: list[int] = []
    briefs = scene.store.briefs
    monkeypatch.setattr(scene.store, "briefs", lambda ids: (read.append(len(ids)), briefs(ids))[1])
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def sweep() -> None:
        task = asyncio.get_running_loop().create_task(others())
        await actions.sweep(scene.store, time.time())
        task.cancel()

    asyncio.run(sweep())
    assert read == [READ_PAGE] * 10
    assert turns >= 10
    other = Scene(0, tasks=10 * READ_PAGE)
    monkeypatch.setattr(other.store, "briefs", lambda ids: (read.append(len(ids)), briefs(ids))[1])
    assert other.ask(actions.status).status == "ACTIVE"
    assert set(read) == {READ_PAGE}


def test_a_sweep_leaves_an_action_at_its_first_task_that_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(OLD_S, "PT1M", tasks=10 * READ_PAGE)
    waiting = SimpleNamespace(state=TaskState.QUEUED)
    read: list[int] = []
    monkeypatch.setattr(scene.store, "briefs", lambda ids: (read.append(len(ids)), [waiting])[1])
    assert asyncio.run(actions.sweep(scene.store, time.time())) == 0
    assert read == [READ_PAGE]


def test_a_sweep_leaves_an_action_that_is_begun_anew_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(OLD_S, "PT1M")
    anew = Document(kind=actions.KIND, id="a", owner="one", body=b"another")
    briefs = scene.store.briefs

    def begun_anew(ids: list[bytes]) -> Any:
        scene.store.submit(lambda tx: tx.put_document(anew)).result()
        return briefs(ids)

    monkeypatch.setattr(scene.store, "briefs", begun_anew)
    asyncio.run(actions.sweep(scene.store, time.time()))
    assert scene.store.document(actions.KIND, "a") == anew


def test_an_action_goes_with_its_account() -> None:
    scene = Scene(age_s=0)
    for name in ("one", "other"):
        identity = Identity(id=name, username=f"{name}@x.org")
        scene.store.submit(lambda tx, name=name, identity=identity: tx.add_account(name, identity)).result()
    scene.store.submit(lambda tx: tx.merge_accounts("other", "one")).result()
    assert scene.ask(actions.status, "other").action_id == "a"
