"""The link's client against a real ROUTER with a real CURVE key; time is the test's own."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from zmq.utils import z85

from mep.boundary import fd_reserve
from mep_link.backoff import SOON_S, Backoff
from mep_link.client import (
    ATTEMPT_S,
    PROVEN_S,
    SLOW_HANDSHAKE_S,
    STALLED,
    TOO_FEW_DESCRIPTORS,
    LinkClient,
    LinkState,
    options,
)
from mep_wire import codec, messages
from mep_wire.errors import LinkMessageInvalid
from mep_wire.limits import LINK_DEAD_S
from tests.support.waiting import until

Client = LinkClient[messages.ToManager]
HELLO = messages.ManagerHello(protocol=1, endpoint_id="e", epoch=b"e" * 16, version="t", hostname="h")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class RelayEnd:
    """A relay that answers as the test says."""

    def __init__(self) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self.public, self._secret = zmq.curve_keypair()
        self.port = 0
        self.peer = b""
        self.listen()

    def listen(self) -> None:
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.curve_server, self.socket.curve_secretkey, self.socket.linger = True, self._secret, 500
        self.socket.bind(f"tcp://127.0.0.1:{self.port or '*'}")
        self.port = int(self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def take(self) -> messages.ToRelay | None:
        if not self.socket.poll(0):
            return None
        self.peer, frame = self.socket.recv_multipart()
        return codec.decode_to_relay(frame)

    def say(self, *parts: messages.ToManager | bytes) -> None:
        frames = [part if isinstance(part, bytes) else codec.encode(part) for part in parts]
        self.socket.send_multipart([self.peer, *frames])

    def go(self) -> None:
        self.socket.close()

    def close(self) -> None:
        self._context.destroy(linger=0)


class Scene:
    def __init__(self, **more: Any) -> None:
        self.clock, self.relay = Clock(), RelayEnd()
        self.link = self.client(f"tcp://127.0.0.1:{self.relay.port}", **more)
        self.got: list[messages.ToManager] = []
        self.heard: list[messages.ToRelay] = []

    def client(self, address: str, **more: Any) -> Client:
        key = z85.decode(self.relay.public)
        backoff = Backoff(draw=lambda: 1.0)
        settings = options(key, max_inbound_bytes=1 << 20)
        made: Client = LinkClient(address, settings, codec.decode_to_manager, backoff=backoff, clock=self.clock, **more)
        made.hello = lambda: HELLO
        return made

    def turn(self) -> bool:
        self.got += self.link.receive()
        self.link.tick()
        if not self.relay.socket.closed and (heard := self.relay.take()) is not None:
            self.heard.append(heard)
        return True

    def until(self, what: str, condition: Any) -> None:
        until(what, lambda: self.turn() and condition(), details=lambda: (self.link.state, self.got, self.heard))

    def up(self) -> None:
        before = len(self.heard)
        self.until("a hello", lambda: HELLO in self.heard[before:])
        self.relay.say(messages.ManagerWelcome(relay_time=0.0, heartbeat_s=10.0))
        self.until("the link is up", lambda: self.link.welcomed)

    def state(self, wanted: LinkState) -> None:
        self.until(wanted.name, lambda: self.link.state is wanted)

    def close(self) -> None:
        self.link.close(0)
        self.relay.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def test_each_connection_begins_with_a_hello_and_the_relay_goes_and_comes(scene: Scene) -> None:
    scene.up()
    scene.relay.go()
    scene.state(LinkState.DOWN)
    assert scene.link.down_reason == "the connection was closed"
    scene.relay.listen()
    assert scene.link.next_deadline() - scene.clock.now <= SOON_S
    scene.clock.now = scene.link.next_deadline()
    scene.up()
    assert scene.heard.count(HELLO) == 2
    assert (scene.link.connections, scene.link.losses) == (2, 1)


def test_without_a_hello_to_say_a_connection_waits(scene: Scene) -> None:
    scene.link.hello = None
    scene.state(LinkState.GREETING)
    assert scene.heard == []
    scene.link.hello = lambda: HELLO
    scene.link.greet()
    scene.until("a hello", lambda: HELLO in scene.heard)


def test_the_last_message_of_a_connection_is_read_though_it_has_ended(scene: Scene) -> None:
    scene.until("a hello", lambda: HELLO in scene.heard)
    why = messages.Refused(code="PROTOCOL_MISMATCH", text="upgrade", final=True)
    scene.relay.say(why)
    scene.relay.go()
    until("both have come", lambda: scene.link.pending)
    scene.until("the refusal", lambda: why in scene.got and scene.link.state is LinkState.DOWN)
    scene.link.disconnect("refused", wait_s=300.0)  # of a connection that has gone already
    assert scene.link.next_deadline() == scene.clock.now + 300.0


def test_a_relay_that_does_not_answer_is_left(scene: Scene) -> None:
    scene.until("a hello", lambda: HELLO in scene.heard)
    scene.clock.now += ATTEMPT_S
    scene.link.tick()
    assert scene.link.down_reason == "the relay doesn't answer"


def test_a_silent_relay_is_left_and_one_that_speaks_is_not(scene: Scene) -> None:
    scene.up()
    for _ in range(5):
        scene.clock.now += 10.0
        scene.until("a ping", lambda: any(isinstance(each, messages.Ping) for each in scene.heard))
        scene.heard.clear()
        scene.relay.say(messages.Pong(sent_at=scene.clock.now))
        scene.got.clear()
        scene.until("the pong", lambda: scene.got)
    scene.clock.now += LINK_DEAD_S
    scene.link.tick()
    assert "nothing heard for 35 s" in scene.link.down_reason


def test_a_process_that_slept_reads_before_it_judges(scene: Scene) -> None:
    scene.up()
    scene.relay.say(messages.Pong(sent_at=1.0))
    until("the message has come", lambda: scene.link.pending)
    scene.clock.now += 100.0
    scene.link.tick()
    assert scene.link.welcomed


def test_only_a_link_that_lasted_starts_the_pauses_over(scene: Scene) -> None:
    pauses = []
    for lasted_s in (0.0, 0.0, PROVEN_S):
        scene.up()
        scene.clock.now += lasted_s
        scene.link.disconnect("test")
        pauses.append(scene.link.next_deadline() - scene.clock.now)
        scene.clock.now = scene.link.next_deadline()
    assert pauses == pytest.approx([1.0, SOON_S, 1.0])


@pytest.mark.parametrize("frames", [(b"\xff\xff",), (b"", b"two frames"), (b"",)])
def test_a_malformed_message_ends_the_connection(scene: Scene, frames: tuple[bytes, ...]) -> None:
    scene.up()
    scene.relay.say(*frames)
    scene.state(LinkState.DOWN)


def test_a_malformed_message_is_dropped_where_the_owner_says_so() -> None:
    told: list[LinkMessageInvalid] = []
    scene = Scene(malformed=told.append)
    scene.up()
    scene.relay.say(b"\xff\xff")
    scene.relay.say(messages.Ping(sent_at=2.0))
    scene.until("the ping is answered", lambda: messages.Pong(sent_at=2.0) in scene.heard)
    assert len(told) == 1
    assert scene.link.welcomed
    scene.close()


def test_a_listener_that_accepts_and_closes_is_tried_again_soon(scene: Scene) -> None:
    """A proxy without its relay."""
    scene.link.close(0)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        scene.link = scene.client(f"tcp://127.0.0.1:{proxy.getsockname()[1]}")
        for number in range(5):
            scene.clock.now = max(scene.clock.now, scene.link.next_deadline())
            scene.link.tick()
            proxy.accept()[0].close()
            until("the loss", lambda before=number: scene.link.receive() == [] and scene.link.losses > before)
            assert scene.link.next_deadline() - scene.clock.now <= SOON_S


@pytest.mark.parametrize(("waits_s", "blames_key"), [(0.0, True), (SLOW_HANDSHAKE_S + 1.0, False)])
def test_a_relay_that_stands_still_is_not_taken_for_another(scene: Scene, waits_s: float, *, blames_key: bool) -> None:
    """Its kernel takes the connection; the handshake has no answer, and ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        link = scene.link = scene.client(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        taken: list[socket.socket] = []

        def took() -> bool:
            with contextlib.suppress(BlockingIOError):
                taken.append(listener.accept()[0])
            return bool(taken)

        scene.until("a connection", took)
        scene.clock.now += waits_s
        taken[0].close()
        scene.until("its end", lambda: link.down_reason)
        assert ("registered with" in link.down_reason) is blames_key
        assert (link.down_reason == STALLED) is not blames_key


def test_a_host_that_drops_packets_is_left_soon(scene: Scene) -> None:
    """TCP by itself would send its third SYN after 3 s, the fourth after 7 and the fifth after 15."""
    scene.link.close(0)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (first, second):  # fills the queue, and further SYNs are dropped
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        scene.link = scene.client(f"tcp://127.0.0.1:{full.getsockname()[1]}")
        scene.link.tick()
        until("the attempt ends", lambda: scene.link.receive() == [] and scene.link.state is LinkState.DOWN)
        assert scene.link.down_reason == "no connection"


def test_an_impossible_address_is_a_loss_like_any_other(scene: Scene) -> None:
    scene.link.close(0)
    scene.link = scene.client("tcp://nowhere")
    scene.link.tick()
    assert scene.link.state is LinkState.DOWN
    assert scene.link.losses == 1


def test_hung_up_it_stays_away(scene: Scene) -> None:
    scene.up()
    scene.link.hang_up()
    assert scene.link.next_deadline() == float("inf")
    assert not scene.link.send(HELLO)
    assert scene.link.descriptors() == []


def test_without_free_descriptors_no_socket_is_made(scene: Scene) -> None:
    """libzmq would abort the process, and its tasks with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as lowest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno() + fd_reserve.RESERVE, hard))
        try:
            scene.link.tick()
            assert (scene.link.state, scene.link.down_reason) == (LinkState.DOWN, TOO_FEW_DESCRIPTORS)
            assert scene.link.descriptors() == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    scene.clock.now = scene.link.next_deadline()
    scene.up()
