"""A user endpoint has one record in the relay's memory, however often an idle one is forgotten."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.ids import uuid7
from mep_wire.start_request import SEAL_CONTEXT, decode_start
from mep_wire.states import UepState
from relay.dispatch import start_requests
from relay.dispatch.live_state import Uep
from relay.link.base import Peer
from relay.store.base import Tx
from relay.store.records import NewTask
from tests.unit.relay.test_dispatch_failures import Scene


class Site(Scene):
    """An endpoint with a known, idle user endpoint, and the key that opens a join token."""

    def __init__(self) -> None:
        super().__init__()
        self.unseal = X25519PrivateKey.generate()
        endpoint = self.store.endpoint(self.manager.endpoint_id)
        assert endpoint is not None
        fields = {name: getattr(endpoint, name) for name in endpoint.__struct_fields__}
        key = self.unseal.public_key().public_bytes_raw()
        self.do(lambda tx: tx.put_endpoint(type(endpoint)(**{**fields, "unseal_key": key})))
        rows = [task.row for task in self.store.tasks([self.task.task_id])]
        self.do(lambda tx: tx.record_endings(self.uep.row, _ended(rows)))
        self.uep.has_queued = False

    def record(self) -> Any:
        found = self.store.uep("u")
        assert found is not None
        return found

    def later(self) -> Callable[[], None]:
        """Have the next commit take until the returned function is called."""
        submit, waiting = self.store.submit, []

        def slow(change: Callable[[Tx], Any]) -> Future[Any]:
            self.store.submit = submit  # type: ignore[method-assign]
            future: Future[Any] = Future()
            waiting.append((change, future))
            return future

        def go_on() -> None:
            ((change, future),) = waiting
            future.set_result(submit(change).result())

        self.store.submit = slow  # type: ignore[assignment,method-assign]
        return go_on

    async def start_request(self) -> bytes:
        """Return the join token of the next start request."""
        await self.spoken()
        (signed,) = [one for one in self.sent() if isinstance(one, messages.SignedStart)]
        request = decode_start(signed.request)
        suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
        token: bytes = suite.decrypt(request.sealed_join_token, self.unseal, SEAL_CONTEXT + b"u")
        return token

    async def join(self, token: bytes) -> Peer:
        peer = Peer(os.urandom(5), os.urandom(32), 0.0)
        join = messages.Join(protocol=PROTOCOL_VERSION, uep_id="u", token=token)
        self.dispatcher.on_frame(peer, codec.encode(join))
        for _ in range(10):
            await asyncio.sleep(0)
        assert isinstance(peer.session, Uep)
        return peer


def _ended(rows: list[int]) -> list[Any]:
    from relay.dispatch.task_transitions import cancelled

    return cancelled(rows)


def test_a_start_is_over_once_its_process_has_joined_also_where_the_record_was_forgotten(monkeypatch: Any) -> None:
    """Tasks are being stored for a user endpoint in the moment in which its record is forgotten as idle."""
    monkeypatch.setattr(start_requests, "START_REQUEST_LIFETIME_S", 0.05)

    async def run() -> None:
        site = Site()
        uep = site.dispatcher.live.uep(site.record())
        go_on = site.later()
        task = NewTask(task_id=uuid7().bytes, function=site.task.function, payload=b"p" * 300_000)
        adding = asyncio.create_task(site.dispatcher.delivery.add(uep, "a", "g", [task]))
        await asyncio.sleep(0)
        site.dispatcher.live.forget_idle(uep)  # the end of its last process was settled just now, say
        go_on()
        await adding
        site.dispatcher.starts.want(uep)
        token = await site.start_request()
        peer = await site.join(token)
        site.link_.sent.clear()
        await asyncio.sleep(0.5)  # the start's deadline is past, and the pause before another one
        assert not [one for one in site.link_.sent if b"SignedStart" in one[:16]]
        assert peer.session is uep
        assert (uep.state, uep.starting, uep.timer) == (UepState.ONLINE, False, None)

    asyncio.run(run())


def test_whoever_holds_a_record_holds_the_only_one() -> None:
    async def run() -> None:
        site = Site()
        live = site.dispatcher.live
        uep = site.uep
        live.forget_idle(uep)
        assert not live.ueps and not live.by_row
        assert live.uep(site.record()) is uep and live.ueps["u"] is uep
        live.forget_idle(uep)
        site.uep = uep = None  # type: ignore[assignment]
        gc.collect()
        made = live.uep(site.record())
        assert live.by_row[made.row] is made

    asyncio.run(run())


def test_tasks_of_a_forgotten_record_are_asked_for_when_the_manager_comes() -> None:
    async def run() -> None:
        site = Site()
        live, uep = site.dispatcher.live, site.uep
        manager = live.managers.pop(site.manager.endpoint_id)
        live.forget_idle(uep)
        added = NewTask(task_id=uuid7().bytes, function=site.task.function, payload=b"p")
        await site.dispatcher.delivery.add(uep, "a", "g", [added])
        site.dispatcher.starts.want(uep)
        site.uep = uep = None  # type: ignore[assignment]
        gc.collect()
        live.managers[manager.endpoint_id] = manager
        site.dispatcher.starts.want_all(manager.endpoint_id, at_once=True)
        await site.start_request()

    asyncio.run(run())
