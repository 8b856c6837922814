"""Stops user endpoints without a monitor: left by `mep stop --keep-user-endpoints`, a killed monitor, or systemd.

Each has a keeper, which ends it in good order on SIGTERM. A keeper is found by its directory, and is alive if it holds
the lock there. The directories stay: from them the next monitor tells the relay of the ends.

Keepers of version 0.1.0 have neither lock nor socket, so no later monitor can adopt them. `mep start` ends them first,
as docs/running.md promises (Upgrading). They are found by their records, and signalled only if pid, start time and boot
match. That part can go with the first release that no longer upgrades from 0.1.0.
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

from mep.boundary.runtime_files import KEEPERS_DIR, RECORD_FILE, boot_id, open_keeper, start_ticks
from mep.cli.exit_codes import CliFailed, Exit
from mep.config.paths import EndpointPaths
from mep.config.template_files import check_trusted

FORMER_TIMEOUT_S = 60.0


def _directory(where: EndpointPaths) -> Path | None:
    """Return the directory of keepers, if there is one. Raises CliFailed unless only its owner can write to it."""
    found = where.runtime_dir / KEEPERS_DIR
    if not found.exists():
        return None
    check_trusted(found, os.geteuid())  # its files decide which processes are signalled
    return found


def living_records(where: EndpointPaths) -> list[dict[str, Any]]:
    """Return the records of user endpoints that run, whether or not a monitor does. Raises CliFailed."""
    found = []
    for uep_id, pidfd in _keepers(where).items():
        os.close(pidfd)
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads((where.runtime_dir / KEEPERS_DIR / uep_id / RECORD_FILE).read_text()))
    return found


def _keepers(where: EndpointPaths) -> dict[str, int]:
    """Return a pidfd of each living keeper, by the id of its user endpoint. Raises CliFailed."""
    directory, found = _directory(where), {}
    for path in directory.iterdir() if directory is not None else ():
        try:
            keeper = open_keeper(path) if path.is_dir() else None
        except OSError as error:
            raise CliFailed(f"cannot tell whether a keeper runs: {error}") from None
        if keeper is not None:
            found[path.name] = keeper[1]
    return found


def stop_keepers(where: EndpointPaths, timeout_s: float) -> int:
    """End every user endpoint of a monitor that doesn't run. Return how many there were. Raises CliFailed."""
    running = _keepers(where) | _former_keepers(where)
    try:
        for uep_id in _still_running(running, timeout_s):
            raise CliFailed(f"the keeper of {uep_id} did not end within {timeout_s:g} s", Exit.TIMEOUT)
    finally:
        for pidfd in running.values():
            os.close(pidfd)
    return len(running)


def _still_running(keepers: dict[str, int], timeout_s: float) -> list[str]:
    """SIGTERM keepers, given by their pidfds, and return the names of those that don't end in time."""
    deadline = time.monotonic() + timeout_s
    for pidfd in keepers.values():
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    return [name for name, pidfd in keepers.items() if not _ended(pidfd, max(0.0, deadline - time.monotonic()))]


def _ended(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


# --- keepers of the previous version --------------------------------------------------------------------------------


def end_former_version(where: EndpointPaths, timeout_s: float = FORMER_TIMEOUT_S) -> int:
    """End the keepers of the previous version, and give the monitor their records. Return how many ran.

    One that doesn't end in time is killed. Its user endpoint then dies with it (parent-death signal).
    """
    running = _former_keepers(where)
    for uep_id in _still_running(running, timeout_s):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(running[uep_id], signal.SIGKILL)
    for pidfd in running.values():
        _ended(pidfd, timeout_s)
        os.close(pidfd)
    for path in _former_records(where):
        kept = path.with_suffix("")
        kept.mkdir(mode=0o700, exist_ok=True)
        path.rename(kept / RECORD_FILE)
        path.with_suffix(".mapped").unlink(missing_ok=True)
    return len(running)


def _former_records(where: EndpointPaths) -> list[Path]:
    directory = _directory(where)
    return list(directory.glob("*.json")) if directory is not None else []


def _former_keepers(where: EndpointPaths) -> dict[str, int]:
    """Return a pidfd of each running keeper of the previous version, by the id of its user endpoint."""
    found = {}
    for path in _former_records(where):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_text())
            pidfd = os.pidfd_open(int(record["keeper_pid"]))
            if record["boot_id"] == boot_id() and start_ticks(int(record["keeper_pid"])) == record["keeper_start"]:
                found[path.stem] = pidfd
            else:
                os.close(pidfd)
    return found
