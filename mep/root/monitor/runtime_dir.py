"""The monitor's runtime directory: created safely, locked while the monitor runs, and the status file in it.

Called by the monitor at startup and exit. If another account could change a directory above it, it is refused: its
content decides which processes root adopts and signals.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from mep.boundary.errors import ConfigRefused
from mep.boundary.file_trust import ours
from mep.boundary.runtime_files import (
    ADMIN_DIR,
    ADMIN_SOCKET,
    KEEPERS_DIR,
    LOCK_DIR,
    MANAGER_SOCKET,
    PID_FILE,
    REASONS_FILE,
    STATUS_FILE,
    running_monitor,
    write_pid_file,
)


def ensure_directory(path: str, mode: int) -> None:
    """Create `path` as a directory of ours with `mode`. Missing directories above it get 0755.

    Raises UntrustedPath if another account owns or may write to a directory above it, and OSError.
    """
    ours().make_directory(path, mode)
    if stat.S_IMODE(os.stat(path).st_mode) != mode:
        os.chmod(path, mode)


class RuntimeDir:
    """RUN, held by this monitor alone."""

    def __init__(self, path: str, *, private: bool) -> None:
        """Create and lock it. Raises ConfigRefused, also if another monitor holds the lock, and OSError."""
        self.path = path
        ensure_directory(path, 0o700 if private else 0o755)
        ensure_directory(os.path.join(path, KEEPERS_DIR), 0o700)
        ensure_directory(os.path.join(path, LOCK_DIR), 0o700)
        self._lock = self._take_lock()
        write_pid_file(path)

    def _take_lock(self) -> int:
        """Return the descriptor of the lock.

        The lock is in a directory that other accounts can't enter. flock(2) needs only a descriptor, so an account that
        could open the file for reading could keep the endpoint from starting.
        """
        path = os.path.join(self.path, LOCK_DIR, "monitor")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            holder = running_monitor(self.path)
            who = f"its pid is {holder}" if holder else f"a process holds the lock {path}"
            raise ConfigRefused(self.path, PID_FILE, f"another monitor of this endpoint runs: {who}") from None
        if running_monitor(self.path) is not None:  # version 0.1.0, which locked its pid file
            os.close(descriptor)
            raise ConfigRefused(self.path, PID_FILE, "another monitor of this endpoint runs")
        return descriptor

    def release(self) -> None:
        """Remove the files. Keepers that keep running have their own."""
        for name in (STATUS_FILE, REASONS_FILE, PID_FILE, MANAGER_SOCKET, f"{ADMIN_DIR}/{ADMIN_SOCKET}"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.path, name))
        # Unlock explicitly: a child of fd_closer.py may still share the descriptor, so close alone might not.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
