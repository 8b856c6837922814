"""A compromised manager or mapper sends raw bytes to a real monitor: it's killed and restarted, and others go on."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from mep.boundary.channel import encode
from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import (
    AdminList,
    AskCaps,
    LinkStatus,
    ManagerReady,
    Mapped,
    MapperEpoch,
    MapperReady,
    MapRequest,
    NotMapped,
    Spawned,
    StartAnswered,
    StartEndpoint,
    StopAll,
)
from mep.boundary.resolved_config import Caps
from mep.root.monitor.admin_socket import MAX_PEERS
from tests.support.monitor import MonitorRun, Puppet, ask, new_uep_id, running_monitor
from tests.support.waiting import until

READY = encode(ManagerReady(version="x"))
START = encode(StartEndpoint(ref=7))


def document(content: bytes = b"x") -> int:
    return sealed_memfd("test", content)


def killed(run: MonitorRun, puppet: Puppet, *words: str) -> None:
    """Wait until the monitor has killed `puppet`, and check that the log says why and in which phase."""
    until(f"{puppet.kind} is killed", puppet.is_gone)
    until("the log says so", lambda: f"killing the child child={puppet.kind}[{puppet.pid}]" in log_of(run))
    line = next(line for line in log_of(run).splitlines() if f"{puppet.kind}[{puppet.pid}]" in line)
    for word in words:
        assert word in line, line


def log_of(run: MonitorRun) -> str:
    return run.log_text().replace('"', "")


HOSTILE_FRAMES = {
    "unknown type": (b"\xff", "unknown message type ff"),
    "empty field list": (START[:1], "truncated"),
    "truncated": (START[:-1], "truncated"),
    "too long": (START + b"\0", "bytes too many"),
    "oversized frame": (b"\x15" + b"A" * 20_000, "oversized"),
    "field over its cap": (bytes([22]) + (33).to_bytes(2, "big") + b"A" * 33 + b"\0\0", "33 bytes announced"),
    "not UTF-8": (bytes([22]) + (1).to_bytes(2, "big") + b"\xff" + b"\0\0", "not UTF-8"),
    "NUL": (bytes([22]) + (1).to_bytes(2, "big") + b"\0" + b"\0\0", "NUL"),
    "once only, repeated": (READY, "ManagerReady is not allowed"),
    "a mapper's message": (encode(MapperReady(epoch=b"1" * 16)), "MapperReady is not allowed"),
    "a keeper's message": (encode(AskCaps(uid=0)), "AskCaps is not allowed"),
    "another keeper's message": (encode(Spawned(pid=1)), "Spawned is not allowed"),
    "the monitor's own message": (encode(MapperEpoch(epoch=b"1" * 16)), "MapperEpoch is not allowed"),
    "no descriptor": (START, "0 descriptors"),
}


@pytest.mark.parametrize(("frame", "reason"), HOSTILE_FRAMES.values(), ids=HOSTILE_FRAMES.keys())
def test_hostile_frame_ends_the_manager(frame: bytes, reason: str) -> None:
    with running_monitor() as (run, manager, mapper):
        manager.raw(frame)
        killed(run, manager, "phase=SERVING", reason)
        assert run.puppet("manager").pid != manager.pid
        assert not mapper.is_gone()


def unsealed() -> int:
    return os.memfd_create("plain", os.MFD_ALLOW_SEALING)


def pipe_end() -> int:
    ours, theirs = os.pipe()
    os.close(theirs)
    return ours


def lingering_socket() -> int:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()


NOT_DOCUMENTS: dict[str, Callable[[], int]] = {
    "unsealed memfd": unsealed,
    "pipe": pipe_end,
    "socket": lingering_socket,
    "device": lambda: os.open("/dev/zero", os.O_RDONLY),
    "directory": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "oversized memfd": lambda: document(b"x" * (600 * 1024)),
}


@pytest.mark.parametrize("make", NOT_DOCUMENTS.values(), ids=NOT_DOCUMENTS.keys())
def test_descriptor_that_is_no_document_ends_the_manager(make: Callable[[], int]) -> None:
    with running_monitor() as (run, manager, _):
        descriptor = make()
        manager.raw(START, descriptor)
        os.close(descriptor)
        killed(run, manager, "StartEndpoint")


@pytest.mark.parametrize("count", [2, 4, 5, 100])
def test_surplus_descriptors_end_the_manager_and_do_not_pile_up(count: int) -> None:
    with running_monitor() as (run, manager, _):
        before = len(os.listdir(f"/proc/{run.pid}/fd"))
        descriptor = document()
        manager.raw(START, *[descriptor] * count)
        os.close(descriptor)
        killed(run, manager)
        run.puppet("manager").send(ManagerReady(version="x"))
        until("no descriptor is left", lambda: len(os.listdir(f"/proc/{run.pid}/fd")) <= before)


def test_descriptors_with_a_message_that_has_none() -> None:
    with running_monitor() as (run, manager, _):
        descriptor = document()
        manager.raw(encode(LinkStatus(state="up", detail="")), descriptor)
        os.close(descriptor)
        killed(run, manager, "LinkStatus: 1 descriptors")


def test_speaking_before_being_ready() -> None:
    with MonitorRun() as run:
        manager = run.puppet("manager")
        descriptor = document()
        manager.raw(START, descriptor)
        os.close(descriptor)
        killed(run, manager, "StartEndpoint is not allowed", "phase=BEGINNING")


def test_flood_of_well_formed_messages() -> None:
    with running_monitor() as (run, manager, mapper):
        frame = encode(LinkStatus(state="up", detail=""))
        with pytest.raises(OSError):
            for _ in range(100_000):
                manager.raw(frame)
        killed(run, manager, "too many messages a second")
        assert not mapper.is_gone()


def test_same_reference_twice() -> None:
    with running_monitor() as (run, manager, _):
        ask(manager, 7)
        ask(manager, 7)
        killed(run, manager, "ref 7 repeated")


def test_too_many_starts_outstanding() -> None:
    with running_monitor() as (run, manager, _):
        with contextlib.suppress(OSError):
            for ref in range(1100):
                ask(manager, ref)
        killed(run, manager, "too many starts outstanding")


def test_manager_that_does_not_read() -> None:
    """It is ended once its queue is full; nothing waits for it, and nothing grows without end."""
    with running_monitor() as (run, manager, mapper):
        mapper.wait_at_most(1)
        with pytest.raises(OSError):
            for ref in range(20_000):
                ask(manager, ref)
                request, descriptors = mapper.take(MapRequest)
                os.close(descriptors[0])
                mapper.send(NotMapped(request.ref, "", "IDENTITY_NOT_MAPPED", "p" * 1000, "", "", ""))
        killed(run, manager, "does not read")
        assert not mapper.is_gone()


def test_manager_that_closes_its_channel_and_lives_on() -> None:
    with running_monitor() as (run, manager, _):
        manager.close()
        until("manager is killed", manager.is_gone)
        assert run.puppet("manager").pid != manager.pid


# --- the mapper ---------------------------------------------------------------------------------------------


def mapped(
    ref: int, *, uep_id: str = "", user: str = "nobody", incarnation: bytes = b"i" * 16, person: bytes = bytes(32),
    literal: int = 0,
) -> bytes:  # fmt: skip
    return encode(Mapped(ref, uep_id or new_uep_id(), user, "{}", "c", person, incarnation, literal))


MAPPER_FRAMES: dict[str, tuple[Callable[[int], bytes], str]] = {
    "unknown reference": (lambda ref: mapped(ref + 1000), "nothing was asked"),
    "path as id": (lambda ref: mapped(ref, uep_id="../../../etc/cron.d/x"), "malformed"),
    "slash in the user": (lambda ref: mapped(ref, user="a/b"), "malformed"),
    "option as user": (lambda ref: mapped(ref, user="-rf"), "malformed"),
    "no user": (lambda ref: mapped(ref, user=""), "malformed"),
    "newline in the user": (lambda ref: mapped(ref, user="a\nb"), "malformed"),
    "no incarnation": (lambda ref: mapped(ref, incarnation=b""), "Mapped.incarnation: 0 bytes"),
    "short incarnation": (lambda ref: mapped(ref, incarnation=b"i" * 15), "Mapped.incarnation: 15 bytes"),
    "short digest": (lambda ref: mapped(ref, person=b"p" * 31), "Mapped.person: 31 bytes"),
    "a flag that is none": (lambda ref: mapped(ref, literal=2), "Mapped.literal: malformed"),
    "start request": (lambda ref: START, "StartEndpoint is not allowed"),
    "ready twice": (lambda ref: encode(MapperReady(epoch=b"2" * 16)), "1 descriptors"),
}


@pytest.mark.parametrize(("make", "reason"), MAPPER_FRAMES.values(), ids=MAPPER_FRAMES.keys())
def test_hostile_frame_ends_the_mapper(make: Callable[[int], bytes], reason: str) -> None:
    with running_monitor() as (run, manager, mapper):
        ask(manager, 1)
        request, descriptors = mapper.take(MapRequest)
        os.close(descriptors[0])
        descriptor = document()
        mapper.raw(make(request.ref), descriptor)
        os.close(descriptor)
        killed(run, mapper, reason)
        answer = manager.take(StartAnswered)[0]
        assert (answer.ref, answer.outcome, answer.code) == (1, "unavailable", "MAPPER_UNAVAILABLE")
        assert not run.record(new_uep_id())
        assert not manager.is_gone()


def test_mapper_restarts_with_a_new_epoch_that_the_manager_is_told() -> None:
    with running_monitor() as (run, manager, mapper):
        first = manager.take(MapperEpoch)[0].epoch
        mapper.kill()
        again = run.puppet("mapper")
        epoch = secrets.token_bytes(16)
        again.send(MapperReady(epoch=epoch))
        assert manager.take(MapperEpoch)[0].epoch == epoch != first


@pytest.mark.parametrize(
    "frame",
    [
        encode(Mapped(1, new_uep_id(), "nobody", "{}", "", bytes(32), bytes(16), 0)),
        encode(NotMapped(1, "", "IDENTITY_NOT_MAPPED", "", "", "", "")),
    ],
    ids=["mapped", "refusal"],
)
def test_mapper_out_of_phase(frame: bytes) -> None:
    with MonitorRun() as run:
        mapper = run.puppet("mapper")
        descriptor = document()
        mapper.raw(frame, *([descriptor] if frame[0] == 2 else []))
        os.close(descriptor)
        killed(run, mapper, "phase=")


def test_unknown_refusal_code_ends_the_mapper() -> None:
    with running_monitor() as (run, manager, mapper):
        ask(manager, 1)
        request, descriptors = mapper.take(MapRequest)
        os.close(descriptors[0])
        mapper.send(NotMapped(request.ref, "", "MADE_UP", "", "", "", ""))
        killed(run, mapper, "NotMapped.code: malformed")


def test_short_epoch_ends_the_mapper() -> None:
    with MonitorRun() as run:
        mapper = run.puppet("mapper")
        mapper.raw(encode(MapperReady(epoch=b"short")))
        killed(run, mapper, "MapperReady.epoch: 5 bytes")


def test_document_of_the_mapper_that_is_not_sealed() -> None:
    with running_monitor() as (run, manager, mapper):
        ask(manager, 1)
        request, descriptors = mapper.take(MapRequest)
        os.close(descriptors[0])
        descriptor = unsealed()
        mapper.raw(mapped(request.ref), descriptor)
        os.close(descriptor)
        killed(run, mapper, "seals")


def test_mapper_that_never_answers_is_replaced() -> None:
    with running_monitor(caps=Caps(start_timeout_s=0.5)) as (run, manager, mapper):
        ask(manager, 1)
        answer = manager.take(StartAnswered)[0]
        assert (answer.outcome, answer.code) == ("unavailable", "MAPPER_UNAVAILABLE")
        killed(run, mapper, "has not answered")


def test_back_off_grows() -> None:
    with MonitorRun() as run:
        times = []
        for _ in range(4):
            run.puppet("manager").raw(b"\xff")
            times.append(time.monotonic())
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert 0.15 < gaps[0] < gaps[1] < gaps[2]


def test_stop_all_may_be_said_once() -> None:
    with running_monitor() as (run, manager, _):
        manager.send(StopAll(reason="deleted"))
        manager.send(StopAll(reason="deleted"))
        killed(run, manager, "StopAll is not allowed")


# --- nothing may block the monitor ------------------------------------------------------------------------------


def socket_whose_close_waits() -> socket.socket:
    """Return a TCP socket with unsent data and SO_LINGER: its last close waits for half a minute."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver = server.accept()[0]
    RECEIVERS.append(receiver)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
    sender.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sender.send(b"x" * 65536)
    return sender


RECEIVERS: list[socket.socket] = []


@pytest.fixture
def _release_receivers() -> Iterator[None]:
    yield
    for receiver in RECEIVERS:
        receiver.close()
    RECEIVERS.clear()


WAITING_CLOSES = {
    "as a document": (START, 1),
    "with a message that has none": (encode(LinkStatus(state="up", detail="")), 1),
    "many": (START, 40),
    "with an unknown message": (b"\xff", 2),
}


@pytest.mark.usefixtures("_release_receivers")
@pytest.mark.parametrize(("frame", "count"), WAITING_CLOSES.values(), ids=WAITING_CLOSES.keys())
def test_descriptor_whose_close_waits_does_not_stop_the_monitor(frame: bytes, count: int) -> None:
    with running_monitor() as (run, manager, mapper):
        doomed = [socket_whose_close_waits() for _ in range(min(count, 3))]
        numbers = [doomed[n % len(doomed)].fileno() for n in range(count)]
        manager.raw(frame, *numbers)
        with contextlib.suppress(BrokenPipeError):
            manager.raw(frame, *numbers)  # this one is never received: it goes down with the channel
        for one in doomed:
            one.close()  # not the last reference: this does not wait
        killed(run, manager)
        began = time.monotonic()
        again = run.puppet("manager")
        again.send(ManagerReady(version="again"))
        ask(again, 1)
        os.close(mapper.take(MapRequest)[1][0])
        assert time.monotonic() - began < 30


@pytest.mark.usefixtures("_release_receivers")
@pytest.mark.parametrize("turned_away", [False, True], ids=["admitted", "turned away"])
def test_an_administrators_descriptor_whose_close_waits_does_not_stop_the_monitor(*, turned_away: bool) -> None:
    with running_monitor() as (run, manager, mapper), contextlib.ExitStack() as peers:
        opened, peers_before = len(os.listdir(f"/proc/{run.pid}/fd")), MAX_PEERS if turned_away else 0
        for _ in range(peers_before):
            connect_as_administrator(run, peers)
        # A queue that is still full would have the next connection wait for the stopped monitor.
        until("all are taken", lambda: len(os.listdir(f"/proc/{run.pid}/fd")) >= opened + peers_before)
        doomed = socket_whose_close_waits()
        os.kill(run.pid, signal.SIGSTOP)  # so that the descriptor is there before the connection is turned away
        peer = connect_as_administrator(run, peers)
        socket.send_fds(peer, [encode(AdminList(""))], [doomed.fileno()])
        doomed.close()
        began = time.monotonic()
        os.kill(run.pid, signal.SIGCONT)
        with contextlib.suppress(ConnectionError):
            assert not peer.recv(65536), "it is closed"
        ask(manager, 1)
        os.close(mapper.take(MapRequest)[1][0])
        assert time.monotonic() - began < 30


def connect_as_administrator(run: MonitorRun, peers: contextlib.ExitStack) -> socket.socket:
    peer = peers.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    peer.connect(str(run.run / "admin" / "socket"))
    peer.settimeout(60)
    return peer


def test_slow_mapper_that_makes_progress_is_left_alone() -> None:
    with running_monitor(caps=Caps(start_timeout_s=0.6)) as (_, manager, mapper):
        for ref in range(6):
            ask(manager, ref)
        for _ in range(6):
            request, descriptors = mapper.take(MapRequest)
            os.close(descriptors[0])
            time.sleep(0.2)
            mapper.send(NotMapped(request.ref, "", "IDENTITY_NOT_MAPPED", "", "", "", ""))
        answers = [manager.take(StartAnswered)[0].code for _ in range(6)]
        assert {"IDENTITY_NOT_MAPPED", "MAPPER_UNAVAILABLE"} == set(answers)
        assert not mapper.is_gone()
