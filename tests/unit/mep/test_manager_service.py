"""The manager's loop between a real CURVE socket and a real channel."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import zmq
from zmq.utils import z85

from mep.boundary import fd_reserve
from mep.boundary.channel import Channel
from mep.boundary.log import Log
from mep.boundary.memfd import read_sealed
from mep.boundary.messages import (
    EndpointEnded,
    EndpointRunning,
    LinkStatus,
    ManagerReady,
    MapperEpoch,
    Message,
    Shutdown,
    StartAnswered,
    StartBegun,
    StartEndpoint,
    StopAll,
    TaskLogFile,
)
from mep.boundary.resolved_config import ManagerSection
from mep.manager.manager import Manager
from mep.manager.outbox import Outbox
from mep_link import client
from mep_wire import messages
from mep_wire.codec import decode_to_relay, encode
from mep_wire.task_events import TaskEvent
from tests.support.start_requests import ENDPOINT, EPOCH

_M = TypeVar("_M")
WAIT_MS = 5000


class RelayEnd:
    """The relay's end of the link: a ROUTER with CURVE."""

    def __init__(self, context: zmq.Context[Any], key: tuple[bytes, bytes] | None = None, port: int = 0) -> None:
        self.key = key or zmq.curve_keypair()
        self.socket = context.socket(zmq.ROUTER)
        self.socket.curve_server = True
        self.socket.curve_publickey, self.socket.curve_secretkey = self.key
        self.socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.peer = b""

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def next(self, kind: type[_M]) -> _M:
        """Return the next message, which must be of `kind` (heartbeats apart)."""
        while True:
            assert self.socket.poll(WAIT_MS), f"no {kind.__name__}"
            self.peer, frame = self.socket.recv_multipart()
            message = decode_to_relay(frame)
            if isinstance(message, kind):
                return message
            assert isinstance(message, messages.Ping | messages.Pong), message

    def say(self, message: messages.ToManager) -> None:
        self.socket.send_multipart([self.peer, encode(message)])

    def welcome(self, heartbeat_s: float = 10.0) -> messages.ManagerHello:
        hello = self.next(messages.ManagerHello)
        self.say(messages.ManagerWelcome(relay_time=time.time(), heartbeat_s=heartbeat_s))
        return hello

    def close(self) -> None:
        """Close, and wait until the port is free: libzmq closes in its own thread."""
        monitor = self.socket.get_monitor_socket(zmq.Event.CLOSED)
        self.socket.unbind(self.address)
        assert monitor.poll(WAIT_MS)
        self.socket.disable_monitor()
        self.socket.close(linger=0)


class Running:
    """A manager in a thread, and the monitor's end of its channel."""

    def __init__(self, address: str, relay_key: bytes, **more: Any) -> None:
        self.monitor, theirs = Channel.pair(blocking=True)
        theirs._sock.setblocking(False)
        _, secret = zmq.curve_keypair()
        section = ManagerSection(
            endpoint_id=ENDPOINT, relay_link_address=address, relay_link_key=z85.decode(relay_key).hex(),
            account="mep", link_key_path="", max_starting=3, **more,
        )  # fmt: skip
        manager = Manager(section, z85.decode(secret), theirs, Log("manager"))
        self.thread = threading.Thread(target=manager.run)
        self.thread.start()
        self.monitor._sock.settimeout(WAIT_MS / 1000)
        self.next(ManagerReady)

    def next(self, kind: type[_M]) -> _M:
        """Return the next message of `kind`, leaving out link statuses unless asked for."""
        while True:
            received = self.monitor.receive()
            assert received is not None
            message, self.descriptors = received
            if isinstance(message, kind):
                return message
            assert isinstance(message, LinkStatus), message

    def status(self, state: str) -> LinkStatus:
        while (found := self.next(LinkStatus)).state != state:
            pass
        return found

    def say(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        self.monitor.send(message, list(descriptors))

    def end(self) -> None:
        self.monitor.close()
        self.thread.join(5)
        assert not self.thread.is_alive()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def relay_end(context: zmq.Context[Any]) -> RelayEnd:
    return RelayEnd(context)


@pytest.fixture
def manager(relay_end: RelayEnd) -> Iterator[Running]:
    running = Running(relay_end.address, relay_end.key[0])
    yield running
    running.end()


def up(manager: Running, relay_end: RelayEnd) -> None:
    manager.say(MapperEpoch(epoch=EPOCH))
    relay_end.welcome()
    relay_end.next(messages.RunningUeps)


def test_it_says_nothing_before_the_mapper_has_an_epoch(manager: Running, relay_end: RelayEnd) -> None:
    assert not relay_end.socket.poll(200)
    manager.say(MapperEpoch(epoch=EPOCH))
    hello = relay_end.welcome()
    assert (hello.endpoint_id, hello.epoch, hello.protocol) == (ENDPOINT, EPOCH, 1)
    assert relay_end.next(messages.RunningUeps).uep_ids == []
    manager.status("up")


def test_a_new_epoch_is_told_at_once(manager: Running, relay_end: RelayEnd) -> None:
    up(manager, relay_end)
    manager.say(MapperEpoch(epoch=bytes(16)))
    assert relay_end.welcome().epoch == bytes(16)


def test_a_start_goes_to_the_monitor_unread_and_its_answer_back(manager: Running, relay_end: RelayEnd) -> None:
    up(manager, relay_end)
    relay_end.say(messages.SignedStart(uep_id="uep-1", request=b"\xc1 not even MessagePack", signature=b"sig"))
    asked = manager.next(StartEndpoint)
    assert msgspec.msgpack.decode(read_sealed(manager.descriptors[0], 1 << 20)) == [
        b"\xc1 not even MessagePack",
        b"sig",
    ]
    manager.say(StartAnswered(ref=asked.ref, outcome="refused", uep_id="", code="X", public="no", correlation_id="c"))
    answer = relay_end.next(messages.StartAnswer)
    assert (answer.uep_id, answer.outcome, answer.code, answer.text) == ("uep-1", "refused", "X", "no")


def test_starts_wait_here_until_the_monitor_has_a_slot(manager: Running, relay_end: RelayEnd) -> None:
    """One person of three has one slot at a time of the three; the others' positions are told."""
    up(manager, relay_end)
    for number in range(3):
        relay_end.say(messages.SignedStart(uep_id=f"uep-{number}", request=b"r", signature=b"s"))
    first = manager.next(StartEndpoint)
    manager.say(StartBegun(ref=first.ref))
    placed = [relay_end.next(messages.StartQueued) for _ in range(2)]
    assert [(one.uep_id, one.position) for one in placed] == [("uep-1", 1), ("uep-2", 2)]
    manager.say(answered(first, "started"))
    assert relay_end.next(messages.StartAnswer).outcome == "started"
    second = manager.next(StartEndpoint)
    manager.say(answered(second, "try_later"))
    answer = relay_end.next(messages.StartAnswer)
    assert (answer.uep_id, answer.outcome) == ("uep-1", "unavailable")
    manager.next(StartEndpoint)
    relay_end.say(messages.SignedStart(uep_id="uep-0", request=b"r", signature=b"s"))
    manager.next(StartEndpoint)  # it runs, so nothing is started and it needs no slot


def test_without_free_descriptors_a_start_is_asked_for_again(manager: Running, relay_end: RelayEnd) -> None:
    up(manager, relay_end)
    start = messages.SignedStart(uep_id="uep-1", request=b"r", signature=b"s")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (fd_reserve.RESERVE, fd_reserve.RESERVE + 1):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            relay_end.say(start)
            answer = relay_end.next(messages.StartAnswer)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (answer.outcome, answer.code) == ("unavailable", "SITE_BUSY")
    relay_end.say(start)
    manager.next(StartEndpoint)


def test_a_new_epoch_gives_back_what_waits(manager: Running, relay_end: RelayEnd) -> None:
    up(manager, relay_end)
    for number in range(2):
        relay_end.say(messages.SignedStart(uep_id=f"uep-{number}", request=b"r", signature=b"s"))
    manager.next(StartEndpoint)
    relay_end.say(messages.Ping(sent_at=1.0))
    relay_end.next(messages.Pong)  # it has both
    manager.say(MapperEpoch(epoch=bytes(16)))
    answer = relay_end.next(messages.StartAnswer)
    assert (answer.uep_id, answer.outcome, answer.code) == ("uep-1", "unavailable", "START_REQUEST_STALE")


def answered(asked: StartEndpoint, outcome: str) -> StartAnswered:
    return StartAnswered(ref=asked.ref, outcome=outcome, uep_id="", code="", public="", correlation_id="")


def test_an_oversized_start_is_refused_without_the_monitor(manager: Running, relay_end: RelayEnd) -> None:
    up(manager, relay_end)
    relay_end.say(messages.SignedStart(uep_id="uep-1", request=bytes(300_000), signature=b""))
    assert relay_end.next(messages.StartAnswer).code == "START_REQUEST_REFUSED"


def test_what_runs_is_told_after_each_welcome(manager: Running, relay_end: RelayEnd) -> None:
    manager.say(EndpointRunning(uep_id="uep-2"))
    manager.say(EndpointRunning(uep_id="uep-1"))
    manager.say(MapperEpoch(epoch=EPOCH))
    relay_end.welcome()
    assert relay_end.next(messages.RunningUeps).uep_ids == ["uep-1", "uep-2"]
    manager.say(EndpointEnded(uep_id="uep-1", code="IDLE", public="", correlation_id=""))
    assert relay_end.next(messages.UepEnded).uep_id == "uep-1"
    manager.say(MapperEpoch(epoch=bytes(16)))
    relay_end.welcome()
    assert relay_end.next(messages.RunningUeps).uep_ids == ["uep-2"]


def test_a_lost_relay_is_found_again_and_hears_what_it_missed(
    manager: Running, relay_end: RelayEnd, context: zmq.Context[Any]
) -> None:
    up(manager, relay_end)
    relay_end.say(messages.SignedStart(uep_id="uep-1", request=b"r", signature=b"s"))
    asked = manager.next(StartEndpoint)
    relay_end.close()
    assert "next try in" in manager.status("down").detail
    manager.say(StartAnswered(ref=asked.ref, outcome="started", uep_id="", code="", public="", correlation_id=""))
    manager.say(EndpointEnded(uep_id="uep-9", code="IDLE", public="", correlation_id=""))
    again = RelayEnd(context, relay_end.key, relay_end.port)
    again.welcome()
    assert again.next(messages.StartAnswer).uep_id == "uep-1"
    assert again.next(messages.UepEnded).uep_id == "uep-9"
    assert again.next(messages.RunningUeps).uep_ids == ["uep-1"]


def test_an_answer_that_the_relay_may_not_have_read_is_said_again(
    manager: Running, relay_end: RelayEnd, context: zmq.Context[Any]
) -> None:
    up(manager, relay_end)
    manager.say(EndpointEnded(uep_id="uep-1", code="IDLE", public="", correlation_id=""))
    relay_end.next(messages.UepEnded)
    relay_end.close()
    again = RelayEnd(context, relay_end.key, relay_end.port)
    again.welcome()
    assert again.next(messages.UepEnded).uep_id == "uep-1"


def test_a_relay_with_another_key_is_not_spoken_to(context: zmq.Context[Any]) -> None:
    impostor = RelayEnd(context)
    running = Running(impostor.address, zmq.curve_keypair()[0])
    running.say(MapperEpoch(epoch=EPOCH))
    assert "handshake" in running.status("down").detail
    assert not impostor.socket.poll(100)
    running.end()


def test_nobody_listens(context: zmq.Context[Any]) -> None:
    gone = RelayEnd(context)
    gone.close()
    running = Running(gone.address, gone.key[0])
    running.say(MapperEpoch(epoch=EPOCH))
    assert gone.address in running.status("down").detail
    running.end()


def test_a_silent_relay_is_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch, relay_end: RelayEnd, manager: Running
) -> None:
    monkeypatch.setattr(client, "LINK_DEAD_S", 1.2)
    up(manager, relay_end)
    assert "nothing heard" in manager.status("down").detail


def test_pings_are_answered_and_sent(manager: Running, relay_end: RelayEnd) -> None:
    manager.say(MapperEpoch(epoch=EPOCH))
    relay_end.welcome(heartbeat_s=1.0)
    relay_end.next(messages.RunningUeps)
    relay_end.say(messages.Ping(sent_at=12.5))
    assert relay_end.next(messages.Pong).sent_at == 12.5
    assert relay_end.next(messages.Ping).sent_at > 0


def test_garbage_from_the_relay_is_dropped(manager: Running, relay_end: RelayEnd) -> None:
    up(manager, relay_end)
    relay_end.socket.send_multipart([relay_end.peer, b"\xff\xff"])
    relay_end.socket.send_multipart([relay_end.peer, b"", b"two frames"])
    relay_end.say(messages.Ping(sent_at=1.0))
    assert relay_end.next(messages.Pong).sent_at == 1.0


def test_a_final_refusal_is_not_repeated_at_once(manager: Running, relay_end: RelayEnd) -> None:
    manager.say(MapperEpoch(epoch=EPOCH))
    relay_end.next(messages.ManagerHello)
    relay_end.say(messages.Refused(code="PROTOCOL_MISMATCH", text="upgrade", final=True))
    assert "upgrade" in manager.status("refused").detail
    assert not relay_end.socket.poll(300)


def test_a_relay_that_has_forgotten_is_greeted_again(manager: Running, relay_end: RelayEnd) -> None:
    up(manager, relay_end)
    relay_end.say(messages.Refused(code="HELLO_NEEDED", text="who?", final=False))
    relay_end.welcome()
    relay_end.next(messages.RunningUeps)


def test_a_deleted_endpoint_stops_and_stays_away(manager: Running, relay_end: RelayEnd) -> None:
    up(manager, relay_end)
    relay_end.say(messages.EndpointGone(text="deleted by its owner"))
    assert manager.next(StopAll).reason == "deleted by its owner"
    assert not relay_end.socket.poll(300)


def test_shutdown_sends_what_is_left(manager: Running, relay_end: RelayEnd) -> None:
    up(manager, relay_end)
    manager.say(EndpointEnded(uep_id="uep-1", code="STOPPED", public="", correlation_id=""))
    manager.say(Shutdown(reason="test"))
    assert relay_end.next(messages.UepEnded).code == "STOPPED"
    manager.thread.join(5)
    assert not manager.thread.is_alive()


@pytest.fixture
def recording(relay_end: RelayEnd) -> Iterator[Running]:
    running = Running(relay_end.address, relay_end.key[0], audit_tasks=True, audit_required=True)
    yield running
    running.end()


EVENT = TaskEvent(1, "RECEIVED", "relay", 1.0, "t", "f", "u", "i", "alice", "", "", "")


def test_task_records_are_asked_for_written_and_acknowledged(
    recording: Running, relay_end: RelayEnd, tmp_path: Path
) -> None:
    recording.say(MapperEpoch(epoch=EPOCH))
    assert relay_end.welcome().audit_tasks
    relay_end.next(messages.RunningUeps)
    relay_end.say(messages.TaskEvents(dropped=0, events=[EVENT]))
    relay_end.say(messages.Ping(sent_at=1.0))
    relay_end.next(messages.Pong)  # nothing is written yet and nothing was acknowledged
    path = tmp_path / "tasks.log"
    with path.open("a") as file:
        recording.say(TaskLogFile(), [file.fileno()])
    assert relay_end.next(messages.TaskEventsWritten).until == 1
    assert '"event": "RECEIVED"' in path.read_text()


def test_no_start_is_passed_on_whose_tasks_could_not_be_recorded(
    recording: Running, relay_end: RelayEnd, tmp_path: Path
) -> None:
    up(recording, relay_end)
    relay_end.say(messages.SignedStart(uep_id="uep-1", request=b"r", signature=b"s"))
    answer = relay_end.next(messages.StartAnswer)
    assert (answer.outcome, answer.code) == ("unavailable", "AUDIT_UNAVAILABLE")
    with (tmp_path / "tasks.log").open("a") as file:
        recording.say(TaskLogFile(), [file.fileno()])
    relay_end.say(messages.TaskEvents(dropped=0, events=[EVENT]))
    relay_end.next(messages.TaskEventsWritten)
    relay_end.say(messages.SignedStart(uep_id="uep-1", request=b"r", signature=b"s"))
    recording.next(StartEndpoint)


def test_events_that_were_not_asked_for_are_not_answered(manager: Running, relay_end: RelayEnd) -> None:
    up(manager, relay_end)
    relay_end.say(messages.TaskEvents(dropped=0, events=[EVENT]))
    relay_end.say(messages.Ping(sent_at=1.0))
    relay_end.next(messages.Pong)


def ended(uep_id: str) -> messages.UepEnded:
    return messages.UepEnded(uep_id=uep_id, code="IDLE", text="", correlation_id="")


def test_the_outbox_keeps_order_and_its_bound() -> None:
    outbox = Outbox(max_kept=3)
    for number in range(4):
        outbox.add(ended(str(number)))
    assert (len(outbox), outbox.dropped) == (3, 1)
    outbox.sent(1.0)
    outbox.sent(2.0)
    outbox.proven(1.5)
    outbox.link_lost()
    assert outbox.peek() == ended("2")
    outbox.sent(3.0)
    assert outbox.peek() == ended("3")
