"""What the service manager is told, and when: read from the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mep.root.monitor import sd_notify
from mep.root.monitor.event_loop import PollLoop


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        sd_notify.open_notify_socket()
        yield sock
    monkeypatch.setattr(sd_notify._Opened, "sock", None)


def heard(sock: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(sock.recv(4096).decode())
        except BlockingIOError:
            return found


def turn(loop: PollLoop, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    loop.after(0, lambda: None)  # the loop has no descriptor to wait for
    loop.turn()


def test_it_is_ready_when_the_relay_has_answered(listening: socket.socket) -> None:
    manager = sd_notify.ServiceManager(PollLoop(Clock()))
    manager.link_is("connecting")
    assert heard(listening) == []
    manager.helpers_are_ready()
    assert "READY=1" not in str(heard(listening))
    manager.link_is("up")
    assert heard(listening) == ["READY=1\nSTATUS=connected to the relay"]
    manager.link_is("down")
    manager.link_is("up")
    assert [text.partition("=")[0] for text in heard(listening)] == ["STATUS", "STATUS"]


def test_a_link_that_was_up_first_counts(listening: socket.socket) -> None:
    manager = sd_notify.ServiceManager(PollLoop(Clock()))
    manager.link_is("up")
    manager.helpers_are_ready()
    manager.helpers_are_ready()
    assert heard(listening) == ["READY=1\nSTATUS=connected to the relay"]


def test_a_relay_that_is_down_keeps_no_endpoint_from_being_started(listening: socket.socket) -> None:
    clock = Clock()
    loop = PollLoop(clock)
    manager = sd_notify.ServiceManager(loop)
    manager.helpers_are_ready()
    heard(listening)
    turn(loop, clock, sd_notify.LINK_WAIT_S - 1)
    assert heard(listening) == []
    turn(loop, clock, 2)
    assert heard(listening) == ["READY=1\nSTATUS=no link to the relay: trying again"]
    manager.link_is("up")
    assert heard(listening) == ["STATUS=connected to the relay"]


def test_signs_of_life_while_the_loop_turns(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    loop = PollLoop(clock)
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    sd_notify.ServiceManager(loop).start_watchdog()
    assert heard(listening) == ["WATCHDOG=1"]
    for _ in range(3):
        turn(loop, clock, 6)
        assert heard(listening) == ["WATCHDOG=1"]


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}])
def test_no_signs_that_were_not_asked_for(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    sd_notify.ServiceManager(PollLoop(Clock())).start_watchdog()
    assert heard(listening) == []
