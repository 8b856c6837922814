"""Ends jobs and processes and waits until they are gone. Called by `blocks` when it stops."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from user_endpoint.engines.htex.parsl_import import light_parsl

with light_parsl():
    from parsl.errors import ParslError
    from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError

_log = logging.getLogger(__name__)

SILENT = (CommandClientTimeoutError, CommandClientBadError)
"""The errors of a command to an interchange that does not answer."""
PARSL_RAISES = (
    *(ParslError, subprocess.SubprocessError, zmq.ZMQError, OSError),
    *(AttributeError, LookupError, RuntimeError, TypeError, ValueError),
)
"""The errors of providers: their own, and those that commands and their output can cause."""


def until(done: Callable[[], bool], seconds: float) -> bool:
    """Return whether `done` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def gone(group: int) -> bool:
    """Tell whether every process of a group has ended; zombies have."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, _, its_group = Path(entry.path, "stat").read_text().rsplit(")", 1)[1].split()[:3]
                if int(its_group) == group and state != "Z":
                    return False
    return True
