"""The embedded link layer on real sockets: who a peer is, when it is gone, and which messages wait for a slow one."""

# ruff: noqa: ASYNC110 - the tests wait for events in other threads and sockets

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
import zmq
from zmq.utils import z85

from relay.link import zmq_link
from relay.link.base import LinkSession, Peer
from relay.link.zmq_link import ZmqLink
from relay.log import RateLimitedLog
from tests.support.waiting import until_async

SESSION = LinkSession()


class Handler:
    """Records the link layer's calls. A peer has a session from its first frame on."""

    def __init__(self) -> None:
        self.frames: list[tuple[Peer, bytes]] = []
        self.gone: list[tuple[Peer, str]] = []

    def on_frame(self, peer: Peer, frame: bytes) -> None:
        peer.session = peer.session or SESSION
        self.frames.append((peer, frame))

    def on_gone(self, peer: Peer, reason: str) -> None:
        peer.session = None
        self.gone.append((peer, reason))


class Dealer:
    """A peer."""

    def __init__(self, link_: ZmqLink, relay_public: bytes, routing_id: bytes | None = None) -> None:
        public, secret = zmq.curve_keypair()
        self.key = z85.decode(public)
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.curve_publickey, self.socket.curve_secretkey = public, secret
        self.socket.curve_serverkey = relay_public
        if routing_id is not None:
            self.socket.routing_id = routing_id
        self.socket.connect(link_.address)


async def heard(link_: ZmqLink, handler: Handler, public: bytes) -> Dealer:
    """Return a peer after its first message has come under a name that an earlier peer had.

    A ROUTER frees a name when it notices that the connection is closed, which takes a moment. A peer that comes before
    that is never heard under this name, and another peer has to try.
    """
    async with asyncio.timeout(20):
        while True:
            dealer = Dealer(link_, public, b"name")
            dealer.socket.send(b"again")
            with contextlib.suppress(AssertionError):
                await until_async("a frame", lambda key=dealer.key: handler.frames[-1][0].key == key, 1.0)
                return dealer
            dealer.socket.close()


def run(scenario: Callable[[ZmqLink, Handler, bytes], Awaitable[None]]) -> None:
    async def main() -> None:
        public, secret = zmq.curve_keypair()
        link_, handler = ZmqLink("127.0.0.1", 0, z85.decode(secret)), Handler()
        link_.start(handler)
        try:
            await scenario(link_, handler, public)
        finally:
            link_.stop()

    asyncio.run(main())


def test_a_peer_is_known_by_its_key_and_answered() -> None:
    async def scenario(link_: ZmqLink, handler: Handler, public: bytes) -> None:
        dealers = [Dealer(link_, public) for _ in range(3)]
        for number, dealer in enumerate(dealers):
            dealer.socket.send(b"hello %d" % number)
        await until_async("a frame", lambda: len(handler.frames) == 3)
        for peer, frame in handler.frames:
            assert dealers[int(frame[6:])].key == peer.key
            assert link_.send(peer, b"to " + frame)
        for number, dealer in enumerate(dealers):
            await until_async("a message", lambda d=dealer: d.socket.poll(0))
            assert dealer.socket.recv() == b"to hello %d" % number
            dealer.socket.close()

    run(scenario)


def test_a_silent_peer_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_link, "LINK_DEAD_S", 0.5)
    monkeypatch.setattr(zmq_link, "HEARTBEAT_S", 0.1)

    async def scenario(link_: ZmqLink, handler: Handler, public: bytes) -> None:
        silent, talking = Dealer(link_, public), Dealer(link_, public)
        silent.socket.send(b"once")
        async with asyncio.timeout(5):
            while not handler.gone:
                talking.socket.send(b"again")
                await asyncio.sleep(0.05)
        ((peer, reason),) = handler.gone
        assert peer.key == silent.key
        assert "silent" in reason
        assert not link_.send(peer, b"x")
        silent.socket.close()
        talking.socket.close()

    run(scenario)


def test_a_closed_connection_is_noticed_when_something_is_sent() -> None:
    async def scenario(link_: ZmqLink, handler: Handler, public: bytes) -> None:
        dealer = Dealer(link_, public)
        dealer.socket.send(b"hello")
        await until_async("a frame", lambda: handler.frames)
        peer = handler.frames[0][0]
        dealer.socket.close()
        await until_async("a closed connection", lambda: not link_.send(peer, b"x"))
        await until_async("a peer that is gone", lambda: handler.gone)
        assert "closed" in handler.gone[0][1]

    run(scenario)


def test_a_routing_id_that_another_key_had_is_another_peer() -> None:
    async def scenario(link_: ZmqLink, handler: Handler, public: bytes) -> None:
        first = Dealer(link_, public, b"name")
        first.socket.send(b"first")
        await until_async("a frame", lambda: handler.frames)
        old = handler.frames[0][0]
        second = Dealer(link_, public, b"name")
        second.socket.send(b"second")
        await asyncio.sleep(0.3)
        assert len(handler.frames) == 1  # ROUTER does not hand a connected name over
        first.socket.close()
        second.socket.close()
        third = await heard(link_, handler, public)
        new = handler.frames[-1][0]
        assert new is not old
        assert (new.key, new.session) == (third.key, SESSION)
        assert handler.gone[0][0] is old
        assert not link_.send(old, b"for the first alone")
        await asyncio.sleep(0.1)
        assert not third.socket.poll(0)
        third.socket.close()

    run(scenario)


def test_what_a_slow_peer_does_not_take_waits_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_link, "MAX_WAITING_BYTES", 4 * 1024 * 1024)

    async def scenario(link_: ZmqLink, handler: Handler, public: bytes) -> None:
        dealer = Dealer(link_, public)
        dealer.socket.rcvhwm = 1
        dealer.socket.send(b"hello")
        await until_async("a frame", lambda: handler.frames)
        peer = handler.frames[0][0]
        sent = 0
        while link_.writable(peer) and sent < 1000:
            assert link_.send(peer, b"%07d" % sent + bytes(500_000))
            sent += 1
            await asyncio.sleep(0)
        assert not link_.writable(peer)
        for number in range(sent):  # and nothing of it is lost or out of order
            await until_async("a message", lambda: dealer.socket.poll(0))
            assert dealer.socket.recv()[:7] == b"%07d" % number
        await until_async("a peer that can be sent more", lambda: link_.writable(peer))
        while link_.send(peer, bytes(500_000)):
            await asyncio.sleep(0)
        await until_async("a peer that is gone", lambda: handler.gone)
        assert "does not read" in handler.gone[0][1]
        dealer.socket.close()

    run(scenario)


def test_large_messages_that_a_peer_does_not_read_are_few() -> None:
    """A message may have the results of many tasks: 32 of those would be gigabytes."""

    async def scenario(link_: ZmqLink, handler: Handler, public: bytes) -> None:
        dealer = Dealer(link_, public)
        dealer.socket.rcvhwm = 1
        dealer.socket.send(b"hello")
        await until_async("a frame", lambda: handler.frames)
        peer = handler.frames[0][0]
        sent = 0
        while link_.writable(peer) and sent < 1000:
            assert link_.send(peer, b"%07d" % sent + bytes(4_000_000))
            sent += 1
            await asyncio.sleep(0)
        assert sent < zmq_link.SEND_HWM // 2
        for number in range(sent):
            await until_async("a message", lambda: dealer.socket.poll(0))
            assert dealer.socket.recv()[:7] == b"%07d" % number
        await until_async("a peer that can be sent more", lambda: link_.writable(peer))
        assert (list(peer.unsent), peer.unsent_bytes) == ([], 0)
        dealer.socket.close()

    run(scenario)


def test_a_burst_of_short_messages_does_not_keep_bulk_back() -> None:
    async def scenario(link_: ZmqLink, handler: Handler, public: bytes) -> None:
        dealer = Dealer(link_, public)
        dealer.socket.rcvhwm = 1
        dealer.socket.send(b"hello")
        await until_async("a frame", lambda: handler.frames)
        peer = handler.frames[0][0]
        burst = [b"%d" % number for number in range(2000)]
        assert all(link_.send(peer, frame) for frame in burst)
        assert link_.writable(peer)
        received: list[bytes] = []
        async with asyncio.timeout(30):
            while len(received) < len(burst):
                while dealer.socket.poll(0):
                    received.append(dealer.socket.recv())
                await asyncio.sleep(0)
        assert received == burst
        assert not peer.waiting

    run(scenario)


def test_an_address_that_is_taken_is_an_os_error() -> None:
    async def scenario(link_: ZmqLink, handler: Handler, public: bytes) -> None:
        other = ZmqLink("127.0.0.1", int(link_.address.rpartition(":")[2]), bytes(32))
        with pytest.raises(OSError, match="cannot listen"):
            other.start(handler)
        other.stop()

    run(scenario)


def test_strangers_are_so_many_and_no_more_and_the_welcome_are_not_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_link, "MAX_UNAUTHENTICATED", 3)

    async def scenario(link_: ZmqLink, handler: Handler, public: bytes) -> None:
        welcome = Dealer(link_, public)
        welcome.socket.send(b"hello")
        await until_async("a frame", lambda: len(handler.frames) == 1)
        dealers = []
        for number in range(5):
            dealers.append(Dealer(link_, public))
            dealers[-1].socket.send(b"?")
            await until_async("a frame", lambda count=number + 2: len(handler.frames) == count)
            handler.frames[-1][0].session = None
        there = [link_.send(peer, b"x") for peer, _ in handler.frames]
        assert there == [True, False, False, True, True, True]
        dealers[0].socket.send(b"again")  # it may come again
        await until_async("a frame", lambda: len(handler.frames) == 7)
        assert link_.send(handler.frames[-1][0], b"x")

    run(scenario)


def test_what_strangers_can_have_logged_is_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    sparing = RateLimitedLog(10.0, lambda: now[0])
    for number in range(1000):
        sparing.warning("link", number=number)
    sparing.warning("another kind")
    now[0] = 10.0
    sparing.warning("link", number=1000)
    assert [(record.getMessage(), record.fields) for record in caplog.records] == [  # type: ignore[attr-defined]
        ("link", {"number": 0}),
        ("another kind", {}),
        ("link (999 more like it before)", {"number": 1000}),
    ]
