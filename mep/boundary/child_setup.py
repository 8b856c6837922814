"""Startup of the monitor's two lasting children, manager and mapper: accounts, inherited descriptors, log.

Standard library only. Called first by mep/manager/main.py and mep/mapper/main.py, which run as `python -I -m ...`.
Descriptor 3 is the channel, 4 their section on a sealed memfd, 5 their secret key; 6 is the manager's socket.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from types import TracebackType
from typing import TypeVar

from mep.boundary.channel import Channel
from mep.boundary.log import Log
from mep.boundary.memfd import read_sealed
from mep.boundary.resolved_config import MAX_RESOLVED_BYTES, ManagerSection, MapperSection, read_section
from mep.boundary.text import set_format
from mep.boundary.untraceable import close_to_tracers, end_with, gain_no_privilege

CHANNEL_DESCRIPTOR, SECTION_DESCRIPTOR, SECRET_DESCRIPTOR = 3, 4, 5
LISTENER_DESCRIPTOR = 6
SECRET_BYTES = 32
_Section = TypeVar("_Section", ManagerSection, MapperSection)


def refuse_root(process: str) -> None:
    """End this process if any trace of root is left: in real, effective and saved ids, or in a group."""
    if 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()):
        sys.exit(f"{process}: refuses to run as root: the monitor starts it as its own account")


def forbid_core_and_ptrace() -> None:
    """Make this process not dumpable: no core file, no ptrace and no /proc/PID/mem for its own account.

    Until here it was untraceable by its gids (mep/boundary/untraceable.py). Two things come here that such an exec
    would have undone: with no_new_privs it puts the effective gid back to the real one, and it clears the signal that
    ends this process with its parent. A parent that ended before that is noticed on the channel.
    """
    close_to_tracers()
    gain_no_privilege()
    end_with(os.getppid())


def ignore_terminal_signals() -> None:
    """Leave Ctrl-C and hang-ups to the monitor, which ends its children in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def take_channel(*, blocking: bool) -> Channel:
    """Return the channel to the monitor."""
    return Channel.from_descriptor(CHANNEL_DESCRIPTOR, blocking=blocking)


def take_section(cls: type[_Section]) -> _Section:
    """Return this process's configuration, and log as it says from now on. Raises ConfigRefused, NotSealed."""
    data = read_sealed(SECTION_DESCRIPTOR, MAX_RESOLVED_BYTES)
    os.close(SECTION_DESCRIPTOR)
    section = read_section(cls, data)
    set_format(section.log_format)
    return section


def take_secret() -> bytes:
    """Return the 32 bytes of this process's secret key and close its descriptor. Raises ValueError, OSError."""
    try:
        secret = os.read(SECRET_DESCRIPTOR, SECRET_BYTES + 1)
    finally:
        os.close(SECRET_DESCRIPTOR)
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"the key on descriptor {SECRET_DESCRIPTOR} has {len(secret)} bytes, not {SECRET_BYTES}")
    return secret


def take_listener() -> socket.socket:
    """Return the socket on which the manager takes its administrator's questions."""
    return socket.socket(fileno=LISTENER_DESCRIPTOR)


def log_uncaught(log: Log) -> None:
    """Log any exception that ends this process or one of its threads as one line: its text may be foreign."""

    def hook(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        log.error("ended by an error", error=f"{kind.__name__}: {error}", where="".join(traceback.format_tb(trace)))

    sys.excepthook = hook
    threading.excepthook = lambda found: hook(found.exc_type, found.exc_value, found.exc_traceback)
