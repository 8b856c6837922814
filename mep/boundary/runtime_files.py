"""The runtime directory (/run/mep/NAME), as monitor and command line agree on it: file names and formats.

Standard library only, and no pathlib, which would cost the monitor half a megabyte. The monitor writes;
`mep start|stop|status` read, and trust the files because the directory belongs to root (or to the person, for a
single-user endpoint).

`monitor.pid`: one line `PID START BOOT`, START being field 22 (start time in clock ticks) of /proc/PID/stat and BOOT
the kernel's boot id, which tell a stale file from a running monitor. Replaced atomically.
`lock/monitor`: the monitor holds an exclusive flock(2) on it while it runs, so only one can run. `lock` has mode
0700: another account that could open the file could hold the lock.
`keepers/UEP_ID/`: the directory of one keeper, mode 0700. The keeper holds a fcntl(2) lock on `lock` while it lives,
listens at `socket` for the next monitor, and describes itself in `record.json`. The monitor writes `mapped`, the time
when the mapping was last confirmed. A process that the keeper forks doesn't inherit the lock.
`status.json`: a `MonitorStatus`, replaced atomically at every change. Root (or the person) and the administrators'
group may read it.
`manager.sock`: the manager answers questions of root (or the person) there; the monitor makes it.
`reasons.json`: the reasons of refusals in `status.json`, for the same readers. They may quote identities.
`admin/socket`: where the monitor takes administrators' commands (mep/root/monitor/admin_socket.py).

The resolver (`Resolved.resolver_argv`), which the monitor runs on SIGHUP: the monitor appends
`--config-fd N --bundle-fd M`, two inherited memfds that it made with MFD_ALLOW_SEALING and has not sealed yet.
The resolver writes the two documents there and exits 0. The monitor then seals and checks them. On failure, the
resolver writes the reason to standard error and exits with another status.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PID_FILE = "monitor.pid"
STATUS_FILE = "status.json"
REASONS_FILE = "reasons.json"
MANAGER_SOCKET = "manager.sock"
KEEPERS_DIR = "keepers"
ADMIN_DIR, ADMIN_SOCKET = "admin", "socket"
"""Its directory, and the socket in it, at which the monitor takes administrators' commands."""
LOCK_DIR = "lock"
KEEPER_LOCK, KEEPER_SOCKET, RECORD_FILE, MAPPED_FILE = "lock", "socket", "record.json", "mapped"
_MAX_STATUS_BYTES = 4 * 1024 * 1024
_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""


@dataclass(frozen=True, slots=True)
class MonitorStatus:
    """A monitor's published state. `state` is starting, up, stopping or failed; `problem` says why it failed,
    or what happened to one of its processes in the last minutes."""

    state: str
    pid: int
    started_at: float
    """Seconds since the epoch."""
    problem: str = ""
    endpoint_id: str = ""
    link_state: str = ""
    """As in the manager's LinkStatus: connecting, up, down, refused or gone."""
    link_detail: str = ""
    configured_at: float = 0.0
    """When the configuration in force was read. Times are seconds since the epoch, 0 for never."""
    configuration_problem: str = ""
    """That the last reload of the configuration was refused, but not why."""
    configuration_refused_at: float = 0.0
    mapping_loaded: str = ""
    mapping_problem: str = ""
    """That the present mapping file is refused, but not why."""
    mapping_refused_at: float = 0.0
    user_endpoints: list[dict[str, Any]] = field(default_factory=list)
    """One mapping for each: `uep_id`, `local_user`, `pid`, `keeper_pid`, `state`, `since`; `overdue` and
    `account_overdue` if the check of its mapping or account is too long ago."""


def write_status(directory: Path | str, status: MonitorStatus, gid: int = -1) -> None:
    """Replace `status.json` atomically; group `gid` may read it. Raises OSError."""
    _replace(directory, STATUS_FILE, asdict(status), gid)


def write_reasons(directory: Path | str, reasons: Mapping[str, str], gid: int = -1) -> None:
    """Replace `reasons.json`: why `configuration` and `mapping` were refused. Raises OSError."""
    _replace(directory, REASONS_FILE, dict(reasons), gid)


def _replace(directory: Path | str, name: str, value: dict[str, Any], gid: int) -> None:
    _replace_text(directory, name, json.dumps(value) + "\n", 0o640 if gid >= 0 else 0o600, gid)


def _replace_text(directory: Path | str, name: str, text: str, mode: int, gid: int = -1) -> None:
    temporary = f"{directory}/.{name}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w") as file:
        if gid >= 0:
            os.fchown(descriptor, -1, gid)
        os.fchmod(descriptor, mode)
        file.write(text)
    os.replace(temporary, f"{directory}/{name}")


def read_reasons(directory: Path | str) -> dict[str, str]:
    """Return the content of `reasons.json`; empty if there is none, or this account may not read it."""
    try:
        with open(f"{directory}/{REASONS_FILE}", "rb") as file:
            value = json.loads(file.read(_MAX_STATUS_BYTES))
        return {str(key): str(text) for key, text in value.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def read_status(directory: Path | str) -> MonitorStatus | None:
    """Return the last status written, or None if there is no readable one."""
    try:
        with open(f"{directory}/{STATUS_FILE}", "rb") as file:
            value = json.loads(file.read(_MAX_STATUS_BYTES))
        return MonitorStatus(**{f.name: value[f.name] for f in fields(MonitorStatus) if f.name in value})
    except (OSError, ValueError, TypeError):
        return None


@functools.cache
def boot_id() -> str:
    """Return the kernel's id of this boot. Pids and start times of another boot are meaningless."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _stat_fields(pid: int) -> list[bytes] | None:
    """Return the fields of /proc/PID/stat from the third (the state) on, or None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return None
    return stat.rpartition(b")")[2].split()


def start_ticks(pid: int) -> int | None:
    """Return when process `pid` started, in clock ticks since boot, or None if there is no such process."""
    found = _stat_fields(pid)
    return int(found[19]) if found else None


def write_pid_file(directory: Path | str) -> None:
    """Replace `monitor.pid` with that of this process. Raises OSError."""
    _replace_text(directory, PID_FILE, pid_line(os.getpid()), 0o644)


def pid_line(pid: int) -> str:
    """Return the content of `monitor.pid` for process `pid`."""
    return f"{pid} {start_ticks(pid)} {boot_id()}\n"


def running_monitor(directory: Path | str) -> int | None:
    """Return the pid of the monitor that wrote `monitor.pid`, or None if it no longer runs."""
    try:
        descriptor = os.open(f"{directory}/{PID_FILE}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        words = os.read(descriptor, 256).split()
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if len(words) != 3 or not words[0].isdigit() or words[2] != boot_id().encode():
        return None
    found = _stat_fields(int(words[0]))
    if not found or found[0] in (b"Z", b"X") or found[19] != words[1]:
        return None
    return int(words[0])


def lock_holder(descriptor: int) -> int:
    """Return the pid of the process that has a fcntl(2) lock on this file, as the kernel knows it; 0 for none."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def open_keeper(directory: Path | str) -> tuple[int, int] | None:
    """Return pid and pidfd of the keeper that holds the lock in `directory`; None if it has ended. Raises OSError.

    Only a lock of our own account's is believed. It is read again once the pidfd is open. If it still names the same
    process, the pidfd is not one of a later process with the same pid.
    """
    try:
        lock = os.open(f"{directory}/{KEEPER_LOCK}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the lock is another account's", f"{directory}/{KEEPER_LOCK}")
        pid = lock_holder(lock)
        if not pid:
            return None
        pidfd = os.pidfd_open(pid)
        if lock_holder(lock) == pid:
            return pid, pidfd
        os.close(pidfd)
    except ProcessLookupError:
        return None
    finally:
        os.close(lock)
    return None
