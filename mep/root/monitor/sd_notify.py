"""systemd's notification protocol (sd_notify(3)): one datagram to the socket that NOTIFY_SOCKET names, if any.

The monitor is ready when its helpers are and the relay has answered. With WatchdogSec= in the unit, it also says at
intervals that its loop turns: a monitor that hangs is killed and started again, and takes its keepers over.
"""

from __future__ import annotations

import contextlib
import os
import socket

from mep.root.monitor.event_loop import PollLoop

LINK_WAIT_S = 20.0
"""A relay that is down does not keep the endpoint from being started: it is ready after this time without it."""
LINK_UP = "up"
_WATCHDOG = ("WATCHDOG_USEC", "WATCHDOG_PID")
VARIABLES = ("NOTIFY_SOCKET", *_WATCHDOG)
"""What systemd gives the monitor, and what no other process may have."""


class _Opened:
    sock: socket.socket | None = None


def open_notify_socket() -> None:
    """Open the sending socket. An abstract NOTIFY_SOCKET can only be found in the current network namespace."""
    with contextlib.suppress(OSError):
        _Opened.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        _Opened.sock.setblocking(False)


def notify(state: str) -> None:
    """Send `state` to the service manager, for instance READY=1. Do nothing if there is none or it doesn't listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if _Opened.sock is None or not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError):
        _Opened.sock.sendto(state.encode(), name)


class ServiceManager:
    """Tells the service manager of this monitor's state."""

    def __init__(self, loop: PollLoop) -> None:
        self._loop = loop
        self._helpers_ready = self._link_up = self._said_ready = False

    def helpers_are_ready(self) -> None:
        """Manager and mapper are ready: wait for the relay's first answer."""
        if not self._helpers_ready:
            self._helpers_ready = True
            self._tell(waits=True)
            self._loop.after(LINK_WAIT_S, lambda: None if self._said_ready else self._tell())

    def link_is(self, state: str) -> None:
        """The manager has reported the state of its link."""
        self._link_up = state == LINK_UP
        if self._helpers_ready:
            self._tell(waits=not self._said_ready)

    def _tell(self, *, waits: bool = False) -> None:
        """Tell the state of the link; the first time, unless it `waits` for the relay, that the endpoint is ready."""
        if waits and not self._link_up:
            notify("STATUS=waiting for the relay's answer")
            return
        ready, self._said_ready = "" if self._said_ready else "READY=1\n", True
        state = "connected to the relay" if self._link_up else "no link to the relay: trying again"
        notify(f"{ready}STATUS={state}")

    def start_watchdog(self) -> None:
        """Send signs of life from now on, if the unit asks for them: twice in each of its intervals."""
        usec, pid = (os.environ.get(name, "") for name in _WATCHDOG)
        if usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid())):
            self._sign_of_life(int(usec) / 2e6)

    def _sign_of_life(self, interval_s: float) -> None:
        notify("WATCHDOG=1")
        self._loop.after(interval_s, lambda: self._sign_of_life(interval_s))
