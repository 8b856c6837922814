"""A keeper's directory, RUN/keepers/UEP_ID/, with its record, its lock and its socket.

Root alone (in single-user mode: the owner) can enter the directory, so its content is trusted; a directory of another
account's or mode is refused. The lock says whether the keeper lives, the record what it was doing. The monitor makes
the directory, reads and removes it. The keeper writes the record, and leaves its exit status there.
mep.boundary.runtime_files has the names and reads the lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import time
from dataclasses import MISSING, asdict, dataclass, fields

from mep.boundary.errors import ConfigRefused
from mep.boundary.resolved_config import read_section
from mep.boundary.runtime_files import KEEPERS_DIR, MAPPED_FILE, RECORD_FILE, boot_id, start_ticks

_MAX_RECORD_BYTES = 32 * 1024

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
    """For people. The lock names the process."""
    keeper_start: int
    state: str = STARTING
    uid: int = -1
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
    incarnation: str = ""
    """The incarnation of the user endpoint's process, in hexadecimal; empty in records of older versions."""


_NAMES = {one.name for one in fields(KeeperRecord)}
_DEFAULTS = {one.name: one.default for one in fields(KeeperRecord) if one.default is not MISSING}


def new_record(uep_id: str, local_user: str, correlation_id: str, incarnation: bytes = b"") -> KeeperRecord:
    """Return the record of the calling process, a keeper that is starting."""
    pid = os.getpid()
    started = start_ticks(pid) or 0
    return KeeperRecord(
        uep_id, local_user, correlation_id, boot_id(), time.time(), pid, started, incarnation=incarnation.hex()
    )


class Records:
    """The directories of all keepers. Methods raise OSError."""

    def __init__(self, runtime_dir: str) -> None:
        self._directory = os.path.join(runtime_dir, KEEPERS_DIR)

    def path(self, uep_id: str) -> str:
        """Return the directory of a keeper."""
        return os.path.join(self._directory, uep_id)

    def ids(self) -> list[str]:
        """Return the id of every keeper that has a directory."""
        return sorted(entry.name for entry in os.scandir(self._directory) if entry.is_dir(follow_symlinks=False))

    def make(self, uep_id: str) -> None:
        """Make an empty directory for a keeper that is to be forked."""
        self.remove(uep_id)
        os.mkdir(self.path(uep_id), 0o700)

    def check(self, uep_id: str) -> None:
        """Raise PermissionError if another account owns a keeper's directory or may enter it."""
        found = os.lstat(self.path(uep_id))
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "not a directory of this account's alone", self.path(uep_id))

    def write(self, record: KeeperRecord) -> None:
        """Replace the record of `record.uep_id` atomically. Called by its keeper alone."""
        self._replace(record.uep_id, RECORD_FILE, json.dumps(asdict(record)).encode())

    def _replace(self, uep_id: str, name: str, data: bytes) -> None:
        path = os.path.join(self.path(uep_id), name)
        descriptor = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        finally:
            os.close(descriptor)
        os.replace(path + ".tmp", path)

    def read(self, uep_id: str) -> KeeperRecord | None:
        """Return the record of `uep_id`, or None if there is no readable one."""
        try:
            with open(os.path.join(self.path(uep_id), RECORD_FILE), "rb") as file:
                said = json.loads(file.read(_MAX_RECORD_BYTES))
            # A keeper keeps running during an upgrade. One of another version lacks fields, or has further ones.
            known = {key: value for key, value in said.items() if key in _NAMES}
            return read_section(KeeperRecord, json.dumps({**_DEFAULTS, **known}).encode())
        except (OSError, ValueError, AttributeError, ConfigRefused):
            return None

    def remove(self, uep_id: str) -> None:
        """Remove the directory of `uep_id` if possible. If it stays, a later monitor finds that its keeper is gone."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.path(uep_id)):
                os.unlink(os.path.join(self.path(uep_id), name))
            os.rmdir(self.path(uep_id))

    # Beside the keeper's record, the monitor stores the time of the last mapping confirmation. Otherwise a restarted
    # monitor would take the mapping as just confirmed.

    def note_mapped(self, uep_id: str, at: float) -> None:
        """Store the monotonic time `at` at which the mapping of `uep_id` was confirmed."""
        self._replace(uep_id, MAPPED_FILE, f"{boot_id()} {at}\n".encode())

    def mapped_at(self, uep_id: str) -> float:
        """Return the monotonic time of the last confirmation; 0 if it isn't known, or belongs to an earlier boot."""
        try:
            with open(os.path.join(self.path(uep_id), MAPPED_FILE)) as file:
                boot, at = file.read(256).split()
            return min(float(at), time.monotonic()) if boot == boot_id() else 0.0
        except (OSError, ValueError):
            return 0.0


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
    if (pidfd := open_process(record.uep_pid, record.uep_start)) is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
