"""Leftovers of an earlier, killed test session, and those that a session must not leave itself.

Sessions may overlap on one machine. Each holds a shared lock for its life. A session judges or removes anything with
the tests' names only while it has the lock for itself alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sitekit import accounts, ledger

from tests.support.waiting import until

WAIT_S = 5.0
MARK = "MEP_TEST_SESSION"
"""A variable of all that a session starts: its process, so that the next session finds what a killed one has left."""


def _processes(prefix: str) -> set[tuple[int, int]]:
    """Return (pid, start ticks) of every process that runs from `prefix`, but for a pytest that waits for the lock."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            program, *words = (entry / "cmdline").read_bytes().split(b"\0")
            ticks = ledger.start_ticks(int(entry.name))
            if any(word.endswith(b"/bin/pytest") for word in words):
                continue
            if program.startswith((os.fsencode(prefix) + b"/", b"mep.")) and ticks is not None:
                found.add((int(entry.name), ticks))
    return found


def orphans() -> set[tuple[int, int]]:
    """Return (pid, start ticks) of every process of a session that has ended. Containers have other numbers."""
    found, own = set(), os.readlink("/proc/self/ns/pid")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, ValueError):
            variables = (entry / "environ").read_bytes().split(bytes(1))
            mark = next((one for one in variables if one.startswith(MARK.encode())), b"").partition(b"=")[2]
            owner, _, since = mark.decode().partition("-")
            ticks = ledger.start_ticks(int(entry.name))
            is_over = owner and str(ledger.start_ticks(int(owner))) != since
            if is_over and ticks is not None and os.readlink(entry / "ns/pid") == own:
                found.add((int(entry.name), ticks))
    return found


def users_of(prefix: str) -> set[tuple[int, int]]:
    """Return (pid, start ticks) of every process with an open file in one of our directories with this prefix.

    The directory may be removed already. Processes of containers are left out.
    """
    found, own = set(), os.readlink("/proc/self/ns/pid")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                files = [os.readlink(file) for file in (entry / "fd").iterdir()]
                is_user = any(file.startswith(prefix) and _is_ours(file, prefix) for file in files)
                ticks = ledger.start_ticks(int(entry.name))
                if is_user and ticks is not None and os.readlink(entry / "ns/pid") == own:
                    found.add((int(entry.name), ticks))
    return found


def _is_ours(file: str, prefix: str) -> bool:
    try:
        return os.lstat(prefix + file.removeprefix(prefix).partition("/")[0]).st_uid == os.geteuid()
    except FileNotFoundError:
        return True


def _describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(bytes(1), b" ")
        return f"process {pid}: {words.decode(errors='replace')}"
    return f"process {pid}"


def _directories() -> set[str]:
    here = Path(tempfile.gettempdir()).glob("meptest-*")
    return {str(path) for path in here if path.is_dir() and path.lstat().st_uid == os.geteuid()}


class Session:
    """One test session, with the host's state at its beginning."""

    def __init__(self, lock: int, prefix: str) -> None:
        self._lock, self._prefix = lock, prefix
        os.environ[MARK] = f"{os.getpid()}-{ledger.start_ticks(os.getpid())}"
        self._before: set[tuple[int, int]] = set()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other session is running; while this is held, none can begin to judge."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            yield False
            return
        yield True
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def clear_up(self) -> list[str]:
        """Remove the leftovers of killed runs; returns one line for each."""
        cleared = []
        for _ in range(3):  # a worker of pytest-xdist, what it has started, and what that was just starting
            over = orphans()
            cleared += [f"ended, since its test run was killed: {_describe(pid)}" for pid, _ in over]
            ledger.end_processes(over)
        cleared += ledger.sweep()
        with self._alone() as alone:
            if alone:
                cleared += _remove_leftovers()
        self._before = _processes(self._prefix)
        return cleared

    def left_behind(self) -> list[str]:
        """Return everything that this session has not removed, and end its processes."""
        with self._alone() as alone:
            if not alone:
                return []
            with contextlib.suppress(AssertionError):
                until("the end of its processes", lambda: not _processes(self._prefix) - self._before, WAIT_S)
            left = _processes(self._prefix) - self._before
            found = [_describe(pid) for pid, _ in left]
            ledger.end_processes(left)
            left_accounts = [*_test_accounts(), *accounts.helpers_below(_test_endpoints())]
            return found + [f"account {name}" for name in left_accounts] + sorted(_directories())


def _remove_leftovers() -> list[str]:
    names = _test_accounts() if os.geteuid() == 0 else []
    for name in names:
        accounts.remove(name)
    names += accounts.remove_helpers(_test_endpoints())
    ledger.end_processes(users_of(_test_endpoints()))  # a monitor that `mep start --detach` started has no mark
    paths = _directories()
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
    return [f"removed {what}, which a killed run left" for what in [*names, *paths]]


def _test_accounts() -> list[str]:
    return [name for name in accounts.throwaway_names() if name.startswith("meptest-")]


def _test_endpoints() -> str:
    """Return the prefix of the paths of tests' endpoints."""
    return f"{tempfile.gettempdir()}/meptest-"


@contextlib.contextmanager
def session(prefix: str) -> Iterator[Session]:
    """Hold the shared lock for as long as the tests run."""
    lock = os.open(ledger.directory() / "tests.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield Session(lock, prefix)
    finally:
        os.close(lock)
