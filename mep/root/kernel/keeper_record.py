"""A keeper's record, RUN/keepers/UEP_ID.json: for adoption by a later monitor, and at the end for the exit status.

Only root (in single-user mode: the owner) can read or write the directory, so its content is trusted. The
processes that it names are still checked by start time, because pids are reused. Written by keepers, read and
removed by the monitor.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from dataclasses import MISSING, asdict, dataclass, fields

from mep.boundary.errors import ConfigRefused
from mep.boundary.resolved_config import read_section
from mep.boundary.runtime_files import KEEPERS_DIR, MAPPED_SUFFIX, RECORD_SUFFIX, boot_id, start_ticks

_MAX_RECORD_BYTES = 32 * 1024
_TEMPORARY_SUFFIX = ".tmp"

STARTING, RUNNING, ENDED = "starting", "running", "ended"


@dataclass(frozen=True, slots=True)
class KeeperRecord:
    """One keeper and its user endpoint. Start times are field 22 of /proc/PID/stat; pid 0 means no process yet."""

    uep_id: str
    local_user: str
    correlation_id: str
    boot_id: str
    started_at: float
    keeper_pid: int
    keeper_start: int
    state: str = STARTING
    uid: int = -1
    source: str = ""
    person: str = ""
    """The mapper's digest of its owner, in hexadecimal digits."""
    literal: bool = False
    """Whether the mapping file spells the account's name."""
    identities: str = ""
    """Its owner's identities, for the log."""
    cgroup: str = ""
    """The path of its control group, if it has its own."""
    uep_pid: int = 0
    uep_start: int = 0
    pam_pid: int = 0
    """The process that closes the PAM session, even if the keeper is killed; 0 if there is none."""
    pam_start: int = 0
    status: int = 0
    """As from waitpid, once `state` is ended."""
    code: str = ""
    public: str = ""
    detail: str = ""
    ended_at: float = 0.0
    figures_fd: int = -1
    """The keeper's descriptor of the page with the user endpoint's figures (mep/boundary/figures.py); -1 for none."""
    executable: str = ""
    """The keeper's executable; empty in records of older versions."""
    incarnation: str = ""
    """The incarnation of the user endpoint's process, in hexadecimal; empty in records of older versions."""


_DEFAULTS = {one.name: one.default for one in fields(KeeperRecord) if one.default is not MISSING}


def new_record(uep_id: str, local_user: str, correlation_id: str, incarnation: bytes = b"") -> KeeperRecord:
    """Return the record of the calling process, a keeper that is starting."""
    pid = os.getpid()
    return KeeperRecord(
        uep_id, local_user, correlation_id, boot_id(), time.time(), pid, start_ticks(pid) or 0,
        executable=executable_of(pid), incarnation=incarnation.hex(),
    )  # fmt: skip


class Records:
    """The directory of records. Methods raise OSError."""

    def __init__(self, runtime_dir: str) -> None:
        self._directory = os.path.join(runtime_dir, KEEPERS_DIR)

    def _path(self, uep_id: str) -> str:
        return os.path.join(self._directory, uep_id + RECORD_SUFFIX)

    def write(self, record: KeeperRecord) -> None:
        """Replace the record of `record.uep_id` atomically."""
        path = self._path(record.uep_id)
        temporary = f"{path}.{os.getpid()}{_TEMPORARY_SUFFIX}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            data = json.dumps(asdict(record)).encode()
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), temporary)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)

    def read(self, uep_id: str) -> KeeperRecord | None:
        """Return the record of `uep_id`, or None if there is no readable one."""
        try:
            with open(self._path(uep_id), "rb") as file:
                said = json.loads(file.read(_MAX_RECORD_BYTES))
            # A keeper keeps running during an upgrade. One of an older version doesn't write the new fields.
            return read_section(KeeperRecord, json.dumps({**_DEFAULTS, **said}).encode())
        except (OSError, ValueError, TypeError, ConfigRefused):
            return None

    def remove(self, uep_id: str) -> None:
        """Remove the record of `uep_id` if possible. If it stays, a later monitor finds that its keeper is gone."""
        for path in (self._mapped_path(uep_id), self._path(uep_id)):  # nothing is left once the record is gone
            with contextlib.suppress(OSError):
                os.unlink(path)

    def ids(self) -> list[str]:
        """Return the id of every record, and remove leftovers of interrupted writes.

        Keepers keep running and may write and rename during the call. Files of living processes are left alone.
        """
        names = os.listdir(self._directory)
        found = {name.removesuffix(RECORD_SUFFIX) for name in names if name.endswith(RECORD_SUFFIX)}
        for name in names:
            if name.endswith(RECORD_SUFFIX) or name.removesuffix(MAPPED_SUFFIX) in found or _is_being_written(name):
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._directory, name))
        return sorted(found)

    # Beside the keeper's record, the monitor stores the time of the last mapping confirmation. Otherwise a restarted
    # monitor would take the mapping as just confirmed.

    def _mapped_path(self, uep_id: str) -> str:
        return os.path.join(self._directory, uep_id + MAPPED_SUFFIX)

    def note_mapped(self, uep_id: str, at: float, incarnation: bytes = b"") -> None:
        """Store the monotonic time `at` at which the mapping of this process of `uep_id` was confirmed."""
        path = self._mapped_path(uep_id)
        with open(f"{path}.tmp", "w") as file:
            file.write(f"{boot_id()} {at} {incarnation.hex()}\n")
        os.replace(f"{path}.tmp", path)

    def mapped_at(self, uep_id: str, incarnation: bytes = b"") -> float:
        """Return the monotonic time of the last confirmation. Return 0 if it isn't known, or belongs to an earlier boot
        or process."""
        try:
            with open(self._mapped_path(uep_id)) as file:
                boot, at, *named = file.read(256).split()
            same = not incarnation or not named or named[0] == incarnation.hex()
            return min(float(at), time.monotonic()) if boot == boot_id() and same else 0.0
        except (OSError, ValueError):
            return 0.0


def executable_of(pid: int) -> str:
    """Return the executable of a process, empty if it isn't visible. An upgrade that replaces it changes nothing."""
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return ""


def open_keeper(record: KeeperRecord) -> int | None:
    """Return a pidfd of the keeper that wrote `record`, if boot, start time and executable match it."""
    pidfd = open_process(record.keeper_pid, record.keeper_start) if record.boot_id == boot_id() else None
    if pidfd is not None and record.executable not in {"", executable_of(record.keeper_pid)}:
        os.close(pidfd)
        return None
    return pidfd


def _is_being_written(name: str) -> bool:
    """Tell whether `name`, which ends in the writer's pid and .tmp, may be a living keeper's."""
    pid = name.removesuffix(_TEMPORARY_SUFFIX).rpartition(".")[2]
    return pid.isdecimal() and start_ticks(int(pid)) is not None


def open_process(pid: int, started: int) -> int | None:
    """Return a pidfd of the process with `pid` that started at `started`, or None if it is gone.

    The descriptor is opened before the start time is read, so it can't refer to another process.
    """
    if pid <= 1:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if start_ticks(pid) != started:
        os.close(pidfd)
        return None
    return pidfd


def kill_user_endpoint(record: KeeperRecord) -> None:
    """SIGKILL the user endpoint of a dead keeper of this boot, if it still runs."""
    pidfd = open_process(record.uep_pid, record.uep_start)
    if pidfd is None:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)
