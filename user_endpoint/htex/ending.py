"""Waiting for processes to be gone: what `blocks` does at its end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path


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
