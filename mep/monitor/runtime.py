"""The monitor's runtime directory: made safely, locked for its life, and the status file in it.

Called by the monitor at its start and end. A directory on the way that somebody else could change is refused:
what is in it decides whom root adopts and signals.
"""

from __future__ import annotations

import fcntl
import os
import stat

from mep.boundary.runtime import KEEPERS_DIR, PID_FILE, REASONS_FILE, STATUS_FILE, pid_line
from mep.errors import ConfigRefused

OTHERS_WRITE, GROUP_OR_OTHERS_WRITE = 0o002, 0o022


def ensure_directory(path: str, mode: int | None, forbidden: int = GROUP_OR_OTHERS_WRITE) -> None:
    """Make `path` a directory of ours with `mode` (None: as it is, 0700 if new); what is missing above gets 0755.

    Raises ConfigRefused where another account owns a directory on the way, or may write to it by the bits in
    `forbidden` (a distribution's /var/log may belong to its log group), OSError.
    """
    real = os.path.realpath(path)
    at = "/"
    for part in real.strip("/").split("/"):
        at = os.path.join(at, part)
        try:
            os.mkdir(at, 0o700)
            os.chmod(at, 0o755 if at != real else 0o700 if mode is None else mode)
        except FileExistsError:
            pass
        _check_directory(at, forbidden)
    if mode is not None and stat.S_IMODE(os.stat(real).st_mode) != mode:
        os.chmod(real, mode)


def _check_directory(path: str, forbidden: int) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigRefused(path, "", "is not a directory")
    if found.st_uid not in {0, os.geteuid()}:
        raise ConfigRefused(path, "", f"belongs to uid {found.st_uid}: it must be root's or the endpoint's owner's")
    if os.geteuid() == 0 and found.st_mode & forbidden and not found.st_mode & stat.S_ISVTX:
        raise ConfigRefused(path, "", f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})")


def check_reachable(path: str) -> None:
    """Raise ConfigRefused unless every account can reach `path` and read it, and run it where it is a program."""
    real = os.path.realpath(path)
    try:
        if not os.stat(real).st_mode & 0o004:
            raise ConfigRefused(path, "", "not every account can read it")
        at = os.path.dirname(real)
        while True:
            if not os.stat(at).st_mode & 0o001:
                raise ConfigRefused(path, "", f"not every account can reach it: {at} is closed to others")
            if at == "/":
                return
            at = os.path.dirname(at)
    except FileNotFoundError:
        raise ConfigRefused(path, "", "does not exist") from None


class RuntimeDir:
    """RUN, held by this monitor alone."""

    def __init__(self, path: str, *, private: bool) -> None:
        """Make and lock it. Raises ConfigRefused, also where another monitor holds it, and OSError."""
        self.path = path
        ensure_directory(path, 0o700 if private else 0o755)
        ensure_directory(os.path.join(path, KEEPERS_DIR), 0o700)
        self._lock = self._take_lock()

    def _take_lock(self) -> int:
        path = os.path.join(self.path, PID_FILE)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            descriptor = os.open(path, flags, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise ConfigRefused(self.path, PID_FILE, "another monitor of this endpoint runs") from None
            if _is_at(descriptor, path):
                break
            os.close(descriptor)  # a monitor that was ending removed it in between
        os.fchmod(descriptor, 0o644)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, pid_line(os.getpid()).encode(), 0)
        return descriptor

    def release(self, *, keep_records: bool) -> None:
        """Remove the files; with `keep_records`, keepers live on and their records stay."""
        names = [STATUS_FILE, REASONS_FILE, PID_FILE]
        for name in names:
            _unlink(os.path.join(self.path, name))
        if not keep_records:
            keepers = os.path.join(self.path, KEEPERS_DIR)
            for name in os.listdir(keepers):
                _unlink(os.path.join(keepers, name))
        # Said, not left to close: a child of closing.py may still share the descriptor.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
