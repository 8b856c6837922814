"""How many bytes of requests, and how many connections, the relay holds at once."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, suppress
from typing import Any, cast

import pytest
from starlette.requests import ClientDisconnect
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mep_wire.errors import RelayBusy
from mep_wire.limits import MAX_BODY_BYTES
from relay.api import http_protocol
from relay.api.body_budget import BodyBudget
from relay.api.http import BytesResponse
from relay.api.http_protocol import BoundedConnection, BoundedWebSocket


def test_one_person_holds_so_much_and_everybody_together_so_much() -> None:
    bodies = BodyBudget(of_one=100, of_all=250, short=0)
    with ExitStack() as held:
        held.enter_context(bodies.room("alice", 60))
        with pytest.raises(RelayBusy, match="your requests"), bodies.room("alice", 41):
            pass
        held.enter_context(bodies.room("alice", 40))
        held.enter_context(bodies.room("bob", 100))
        with pytest.raises(RelayBusy, match="everybody's requests") as caught, bodies.room("carol", 51):
            pass
        assert caught.value.http_status == 503
        held.enter_context(bodies.room("carol", 50))
    with bodies.room("alice", 100), bodies.room("bob", 100):
        pass


def test_a_few_who_hold_all_that_they_may_keep_nobody_out() -> None:
    bodies = BodyBudget(of_one=400, of_all=1600, short=10)
    with ExitStack() as held:
        for person in ("alice", "bob", "carol", "dave"):
            for _ in range(4):
                try:
                    held.enter_context(bodies.room(person, 100))
                except RelayBusy:
                    break
        held.enter_context(bodies.room("erin", 100))
        with pytest.raises(RelayBusy, match="everybody's"):
            held.enter_context(bodies.room("frank", 500 - 101))
        for _ in range(20):
            held.enter_context(bodies.room("frank", 10))


def test_what_is_held_is_given_back_also_after_a_failure_and_no_size_counts_as_the_largest() -> None:
    bodies = BodyBudget(of_one=MAX_BODY_BYTES, of_all=MAX_BODY_BYTES)
    with pytest.raises(ZeroDivisionError), bodies.room("alice", None):
        with pytest.raises(RelayBusy), bodies.room("bob", MAX_BODY_BYTES // 2):
            pass
        raise ZeroDivisionError
    with bodies.room("bob", 1):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_an_answer_of_bytes_is_held_until_the_client_has_it(*, fails: bool) -> None:
    bodies, sent = BodyBudget(of_one=100, of_all=100), []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        with pytest.raises(RelayBusy), bodies.room("alice", 1):
            pass
        if fails:
            raise OSError

    async def receive() -> Any:
        return await asyncio.Future()

    with ExitStack() as held:
        held.enter_context(bodies.room("alice", 100))
        answer = BytesResponse(b"x" * 300_000, held.pop_all())
    with suppress(ClientDisconnect):
        asyncio.run(answer({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send))
    assert len(b"".join(sent)) == (0 if fails else 300_000)
    with bodies.room("alice", 100):
        pass


class Transport:
    """As much of a transport as a connection looks at when it is made."""

    def __init__(self, host: str) -> None:
        self.host, self.aborted = host, False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.host, 5) if name == "peername" else default

    def abort(self) -> None:
        self.aborted = True


def test_one_address_has_so_many_connections_and_this_host_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MAX_FROM_ONE_ADDRESS", 2)
    monkeypatch.setattr(HttpToolsProtocol, "connection_made", lambda self, transport: None)
    monkeypatch.setattr(HttpToolsProtocol, "connection_lost", lambda self, exc: None)
    monkeypatch.setattr(BoundedConnection, "_allow", lambda self, seconds: None)
    monkeypatch.setattr(BoundedConnection, "_is_read", lambda self: None)

    def connect(host: str) -> tuple[BoundedConnection, bool]:
        made, transport = BoundedConnection.__new__(BoundedConnection), Transport(host)
        made.connection_made(cast("Any", transport))
        return made, transport.aborted

    first, _ = connect("192.0.2.7")
    assert [connect("192.0.2.7")[1] for _ in range(2)] == [False, True]
    assert not connect("192.0.2.8")[1]
    assert not any(connect("127.0.0.1")[1] or connect("::1")[1] for _ in range(5))
    assert [connect(f"2001:db8::{last}")[1] for last in range(3)] == [False, False, True]  # one host has a whole /64
    assert not connect("2001:db8:0:1::1")[1]
    first.connection_lost(None)
    assert connect("192.0.2.7")[1]  # the refused one has not heard of its end yet
    BoundedConnection._from.clear()


@pytest.mark.parametrize("pings", [False, True])
def test_a_result_stream_that_is_not_read_is_cut(monkeypatch: pytest.MonkeyPatch, *, pings: bool) -> None:
    """The end of the stream alone would not do: its connection closes once the client has read all that was sent."""
    monkeypatch.setattr(http_protocol, "UNREAD_S", 0.5)
    lost = asyncio.Event()

    class Watched(BoundedWebSocket):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "bytes": bytes(1 << 20)})

    async def scene() -> None:
        soon = 0.1 if pings else None
        config = Config(app, ws=Watched, log_config=None, ws_ping_interval=soon, ws_ping_timeout=soon)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Watched(config, ServerState(), {}), "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.sendall(
                b"GET /v3/stream HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            await asyncio.wait_for(lost.wait(), 60)
        server.close()

    asyncio.run(scene())
