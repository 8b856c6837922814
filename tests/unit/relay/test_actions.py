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

from mep_wire.errors import ActionNotFinished
from mep_wire.identity import Identity
from relay.api import actions
from relay.api.http import Request
from relay.store.records import Caller, Document
from relay.store.sqlite import SqliteStore


class Scene:
    def __init__(self, age_s: float) -> None:
        self.store = SqliteStore(None)
        body = msgspec.msgpack.encode(
            {
                "action_id": "a", "digest": b"", "account_id": "one", "identity_id": "i",
                "task_ids": [uuid.uuid4().bytes], "label": "", "monitor_by": [], "manage_by": [],
                "release_after": "P30D", "start_time": time.time() - age_s,
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


def test_an_action_goes_with_its_account() -> None:
    scene = Scene(age_s=0)
    for name in ("one", "other"):
        identity = Identity(id=name, username=f"{name}@x.org")
        scene.store.submit(lambda tx, name=name, identity=identity: tx.add_account(name, identity)).result()
    scene.store.submit(lambda tx: tx.merge_accounts("other", "one")).result()
    assert scene.ask(actions.status, "other").action_id == "a"
