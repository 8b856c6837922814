"""The boundary's shared declarations, used by both sides: messages, table, sentences, channel, memfds, documents."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mep.boundary import fd_reserve
from mep.boundary.channel import Channel, DescriptorsLost, encode
from mep.boundary.errors import PUBLIC_TEXTS, BoundaryViolation, ConfigRefused, Refusal
from mep.boundary.file_trust import UntrustedPath
from mep.boundary.memfd import NotSealed, check_sealed, read_sealed, seal, sealed_memfd
from mep.boundary.messages import (
    DESCRIPTORS,
    WIRE_TYPES,
    CapsGranted,
    Mapped,
    MapRequest,
    Message,
    StartEndpoint,
    StartOutcome,
    TaskLogFile,
)
from mep.boundary.resolved_config import Caps, ManagerSection, Policy, from_json, read_section, section_json, to_json
from mep.root.monitor.child import ChildKind
from mep.root.monitor.permissions import TABLE
from mep.root.monitor.runtime_dir import ensure_directory
from mep.root.monitor.start import outcome_of
from mep_wire.errors import by_code
from tests.support.monitor import MonitorRun


def test_every_refusal_is_an_error_that_people_know() -> None:
    assert set(Refusal) <= set(by_code())


@pytest.mark.parametrize("code", PUBLIC_TEXTS)
def test_the_root_side_says_the_same_sentence(code: Refusal) -> None:
    assert PUBLIC_TEXTS[code] == " ".join((by_code()[code].__doc__ or "").split())


def test_the_table_is_complete_and_has_one_row_for_each_message() -> None:
    to_monitor = {power.message for power in TABLE}
    from_monitor = {"MapRequest", "MapperEpoch", "StartAnswered", "EndpointEnded", "EndpointRunning", "EndpointAccount"}
    from_monitor |= {"StartBegun"}
    from_monitor |= {
        "TaskLogFile",
        "EndpointRevoked",
        "RecheckNow",
        "CapsGranted",
        "StartDenied",
        "StopUserEndpoint",
        "CheckAccount",
        "Shutdown",
        "StartsAllowed",
    }
    from_monitor |= {"AdminEndpoint", "AdminRestriction", "AdminFailure", "AdminLogFile", "AdminDone"}
    assert {cls.__name__ for cls in WIRE_TYPES.values()} - {cls.__name__ for cls in to_monitor} == from_monitor
    assert len({(power.kind, power.message) for power in TABLE}) == len(TABLE)
    assert all((power.lost is not None) == (power.message in DESCRIPTORS) for power in TABLE)


def test_only_documents_travel_with_descriptors() -> None:
    assert {cls.__name__: number for cls, number in DESCRIPTORS.items()} == {
        "Mapped": 1, "MapRequest": 1, "StartEndpoint": 1, "TaskLogFile": 1, "CheckAccount": 1, "AdminLogFile": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("SITE_BUSY", StartOutcome.UNAVAILABLE),
        ("MAPPER_UNAVAILABLE", StartOutcome.UNAVAILABLE),
        ("START_REQUEST_STALE", StartOutcome.UNAVAILABLE),
        ("START_INTERRUPTED", StartOutcome.UNAVAILABLE),
        ("ACCOUNT_REFUSED", StartOutcome.REFUSED),
        ("START_FAILED", StartOutcome.REFUSED),
        ("ENDPOINT_MISCONFIGURED", StartOutcome.REFUSED),
    ],
)
def test_which_failures_are_worth_another_try(code: str, outcome: StartOutcome) -> None:
    assert outcome_of(code) is outcome


def test_kinds_name_their_modules() -> None:
    assert {ChildKind.MANAGER, ChildKind.MAPPER} == {"manager", "mapper"}


# --- channel ------------------------------------------------------------------------------------------------


def test_descriptors_arrive_close_on_exec() -> None:
    ours, theirs = Channel.pair()
    document = sealed_memfd("x", b"content")
    theirs.send(MapRequest(ref=1), [document])
    received = ours.receive()
    assert received is not None
    message, (descriptor,) = received
    assert message == MapRequest(ref=1) and not os.get_inheritable(descriptor)
    assert read_sealed(descriptor, 100) == b"content"
    for one in (document, descriptor):
        os.close(one)
    theirs.close()
    assert ours.receive() is None
    ours.close()


@pytest.mark.parametrize(
    "message",
    [
        Mapped(1, "x" * 37, "u", "{}", "c", bytes(32), bytes(16), 0),
        Mapped(1, "i", "u" * 33, "{}", "c", bytes(32), bytes(16), 0),
        Mapped(1, "i", "u", "{}", "c", bytes(33), bytes(16), 0),
        Mapped(1, "i", "u", "{}", "c", bytes(32), bytes(17), 0),
    ],
)
def test_caps_hold_for_the_sender_too(message: Message) -> None:
    with pytest.raises(ValueError, match="cap"):
        encode(message)


def test_wrong_number_of_descriptors_is_not_sent() -> None:
    ours, theirs = Channel.pair()
    with pytest.raises(ValueError, match="descriptors"):
        ours.send(MapRequest(ref=1))
    with pytest.raises(ValueError, match="descriptors"):
        ours.send(CapsGranted(), [0])
    ours.close()
    theirs.close()


# --- memfds ------------------------------------------------------------------------------------------------


def test_a_sealed_memfd_cannot_change() -> None:
    descriptor = sealed_memfd("x", b"content")
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"other", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, 1033, 0)
    assert check_sealed(descriptor, 7) == 7
    with pytest.raises(NotSealed, match="7 bytes, cap 6"):
        check_sealed(descriptor, 6)
    os.close(descriptor)


def test_partly_sealed_is_not_sealed() -> None:
    descriptor = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    for seals in (0, 2, 2 | 4, 2 | 4 | 8):
        fcntl.fcntl(descriptor, 1033, seals)
        with pytest.raises(NotSealed):
            check_sealed(descriptor, 100)
    seal(descriptor)
    assert check_sealed(descriptor, 100) == 0
    os.close(descriptor)


def test_things_that_are_no_memfds() -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(NotSealed):
        check_sealed(left.fileno(), 100)
    with open("/etc/passwd") as file, pytest.raises(NotSealed):
        check_sealed(file.fileno(), 1 << 30)


# --- documents -----------------------------------------------------------------------------------------------


def test_documents_come_back() -> None:
    run = MonitorRun()
    try:
        assert from_json(to_json(run.resolved)) == run.resolved
        assert read_section(ManagerSection, section_json(run.resolved.manager)) == run.resolved.manager
        value = json.loads(to_json(run.resolved))
    finally:
        run.close()
    for key, change, reason in (
        ("surprise", 1, "unknown key"),
        ("name", 7, "not str"),
        ("multi_user", 1, "not bool"),
        ("own_accounts", "mep", "not a list"),
        ("own_accounts", [1], r"own_accounts\[0\]"),
        ("policy", [], "not a mapping"),
        ("caps", {"max_starting": "many"}, "missing|not int"),
    ):
        with pytest.raises(ConfigRefused, match=reason):
            from_json(json.dumps({**value, key: change}).encode())


def test_defaults_are_the_documented_ones() -> None:
    assert Policy().min_uid == 1000
    assert Caps().max_starting == 16


# --- directories -----------------------------------------------------------------------------------------------


def test_missing_directories_are_made(tmp_path: pathlib.Path) -> None:
    ensure_directory(str(tmp_path / "a" / "b"), 0o750)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")] == [0o755, 0o750]
    ensure_directory(str(tmp_path / "a" / "b"), 0o700)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_file_in_the_way_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(NotADirectoryError):
        ensure_directory(str(tmp_path / "a"), 0o700)


@pytest.mark.root
def test_a_way_that_others_can_change_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "there").symlink_to(tmp_path / "a")
    for mode, refused in ((0o775, True), (0o777, True), (0o1777, False)):
        (tmp_path / "a").chmod(mode)
        for way in ("a", "there"):
            with pytest.raises(UntrustedPath, match="chmod go-w") if refused else contextlib.nullcontext():
                ensure_directory(str(tmp_path / way / "run"), 0o700)
    (tmp_path / "a").chmod(0o755)
    os.chown(tmp_path / "a", 12345, 0)
    with pytest.raises(UntrustedPath, match="belongs to uid 12345"):
        ensure_directory(str(tmp_path / "there" / "run"), 0o700)


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Have this process find no free number for a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(2)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("message", [StartEndpoint(ref=3), MapRequest(ref=3), TaskLogFile()])
def test_a_lack_of_descriptors_here_is_no_violation_of_the_peers(message: Message) -> None:
    ours, theirs = Channel.pair()
    document = sealed_memfd("x", b"content")
    theirs.send(message, [document])
    theirs.send(message, [document])
    with no_free_descriptor(), pytest.raises(DescriptorsLost) as caught:
        ours.receive()
    assert caught.value.message == message
    received = ours.receive()
    assert received is not None and len(received[1]) == 1
    os.close(received[1][0])
    os.close(document)
    ours.close()
    theirs.close()


def test_descriptors_of_a_message_that_has_none_stay_a_violation() -> None:
    ours, theirs = Channel.pair()
    with socket.socket(fileno=os.dup(theirs.fileno())) as raw:
        socket.send_fds(raw, [encode(CapsGranted())], [2])
    with no_free_descriptor(), pytest.raises(BoundaryViolation):
        ours.receive()
    ours.close()
    theirs.close()


def test_the_reserve_is_touched_before_the_last_descriptor_is_taken() -> None:
    """In a process of its own, which has few open."""
    code = """
import os, resource
from mep.boundary import fd_reserve
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
opened = []
while not fd_reserve.is_touched():
    opened.append(os.dup(0))
print(100 - 1 - opened[-1])
os.close(opened.pop())
print(fd_reserve.is_touched())
resource.setrlimit(resource.RLIMIT_NOFILE, (20, hard))
print(fd_reserve.is_touched())
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [str(fd_reserve.RESERVE), "False", "True"]
