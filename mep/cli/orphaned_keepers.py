"""Stops user endpoints without a monitor: left by `mep stop --keep-user-endpoints`, a killed monitor, or systemd.

Each has a keeper, which ends it in good order on SIGTERM. Keepers are found by their records. They are signalled only
if pid, start time and boot match the record. The records stay: from them the next monitor tells the relay of the ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

from mep.boundary.runtime_files import KEEPERS_DIR, RECORD_SUFFIX, boot_id, start_ticks
from mep.cli.exit_codes import CliFailed, Exit
from mep.config.paths import EndpointPaths
from mep.config.template_files import check_trusted


def _records(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for path in sorted(directory.glob(f"*{RECORD_SUFFIX}")):
        with contextlib.suppress(OSError, ValueError):
            found.append((path, json.loads(path.read_text())))
    return found


def _open_keeper(record: dict[str, Any]) -> int | None:
    """Return a pidfd of the record's keeper, or None if it has ended."""
    if record.get("boot_id") != boot_id() or record.get("state") == "ended":
        return None
    try:
        pidfd = os.pidfd_open(int(record["keeper_pid"]))
    except (OSError, KeyError, ValueError):
        return None
    if start_ticks(int(record["keeper_pid"])) == record.get("keeper_start"):
        return pidfd
    os.close(pidfd)
    return None


def living_records(where: EndpointPaths) -> list[dict[str, Any]]:
    """Return the records of user endpoints that run, whether or not a monitor does. Raises ConfigRefused."""
    directory, found = where.runtime_dir / KEEPERS_DIR, []
    if not directory.exists():
        return []
    check_trusted(directory, os.geteuid())
    for _, record in _records(directory):
        if (pidfd := _open_keeper(record)) is not None:
            os.close(pidfd)
            found.append(record)
    return found


def stop_keepers(where: EndpointPaths, timeout_s: float) -> int:
    """End every user endpoint of a monitor that doesn't run. Return how many there were. Raises CliFailed."""
    deadline = time.monotonic() + timeout_s
    running = {}
    if (where.runtime_dir / KEEPERS_DIR).exists():
        check_trusted(where.runtime_dir / KEEPERS_DIR, os.geteuid())  # its files decide which processes are signalled
    for path, record in _records(where.runtime_dir / KEEPERS_DIR):
        if (pidfd := _open_keeper(record)) is not None:
            running[path] = pidfd
    try:
        for pidfd in running.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        for path, pidfd in running.items():
            if not _ended(pidfd, max(0.0, deadline - time.monotonic())):
                raise CliFailed(f"the keeper of {path.stem} did not end within {timeout_s:g} s", Exit.TIMEOUT)
    finally:
        for pidfd in running.values():
            os.close(pidfd)
    return len(running)


def _ended(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
