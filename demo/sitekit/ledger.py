"""The ledger of a run: the processes, accounts and directories that it made and must remove, recorded on disk.

Each run has one JSON file, in a directory that belongs to this user alone. A run that ends normally removes its file.
A file without a live run was left by a killed run, and `sweep` clears up after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from sitekit import accounts
from sitekit.errors import SiteError

_WAIT_S = 10.0


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None if it is gone (or a zombie)."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = line.rpartition(b")")[2].split()
    return None if fields[0] == b"Z" else int(fields[19])


def end_processes(processes: Iterable[tuple[int, int]], grace_s: float = 3.0) -> None:
    """End processes given as (pid, start ticks), gently at first; returns when they are gone."""
    alive = [(pid, ticks) for pid, ticks in processes if start_ticks(pid) == ticks]
    for signum, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _WAIT_S)):
        for pid, _ in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signum)
        deadline = time.monotonic() + wait_s
        while alive and time.monotonic() < deadline:
            alive = [(pid, ticks) for pid, ticks in alive if start_ticks(pid) == ticks]
            if alive:
                time.sleep(0.02)


def directory() -> Path:
    """Return this user's own directory for ledgers, made where there is none. Raises SiteError where it is not
    theirs alone."""
    path = _place()
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise SiteError(f"{path} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise SiteError(
            f"{path} must be a directory of yours alone (mode 0700): it belongs to uid {found.st_uid} and has mode "
            f"{stat.filemode(found.st_mode)}. Remove it, or have its owner remove it"
        )
    return path


def _place() -> Path:
    """Return the directory of this user's ledgers: one that no other user can write to, if there is one."""
    uid = os.geteuid()
    if uid == 0:
        return Path("/run/mep-sites")
    own = Path(f"/run/user/{uid}")
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(own.lstat().st_mode) and own.lstat().st_uid == uid:
            return own / "mep-sites"
    return Path(tempfile.gettempdir(), f"mep-sites-{uid}")


class Entries(TypedDict):
    """The content of a ledger's file: processes and owner as pid and start ticks."""

    owner: tuple[int, int]
    processes: list[tuple[int, int]]
    accounts: list[str]
    paths: list[str]


class Ledger:
    """The ledger of this run. An account or path is on disk before it exists, a process once it has started."""

    def __init__(self) -> None:
        me = os.getpid()
        self._entries = Entries(owner=(me, start_ticks(me) or 0), processes=[], accounts=[], paths=[])
        self._file = directory() / f"{me}-{id(self):x}.json"
        self._save()

    def process(self, pid: int) -> None:
        """Record a process that this run has started."""
        ticks = start_ticks(pid)
        if ticks is not None:
            self._entries["processes"].append((pid, ticks))
            self._save()

    def account(self, name: str) -> None:
        """Record an account (or group) that this run is about to make."""
        self._entries["accounts"].append(name)
        self._save()

    def forget(self, name: str) -> None:
        """Take back the record of an account or group that could not be made: it is not this run's to remove."""
        self._entries["accounts"].remove(name)
        self._save()

    def path(self, path: Path) -> None:
        """Record a file or directory that this run is about to make.

        The accounts of endpoints that are configured below it go with it.
        """
        self._entries["paths"].append(str(path))
        self._save()

    def clear(self) -> None:
        """End and remove everything recorded, newest first."""
        _clear(self._entries)
        self._file.unlink(missing_ok=True)

    def _save(self) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self._entries))
        temporary.replace(self._file)


def _clear(entries: Entries) -> None:
    end_processes((pid, ticks) for pid, ticks in reversed(entries["processes"]))
    for name in reversed(entries["accounts"]):
        accounts.remove(name)
    for path in reversed(entries["paths"]):
        _remove_path(Path(path))


def _remove_path(path: Path) -> None:
    accounts.remove_helpers(f"{path}/")
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)


def sweep() -> list[str]:
    """Clear up after runs that were killed. Returns one line for each."""
    cleared = []
    for file in directory().glob("*.json"):
        try:
            entries: Entries = json.loads(file.read_text())
            pid, ticks = entries["owner"]
        except (OSError, ValueError, KeyError):
            continue
        if start_ticks(pid) != ticks:
            _clear(entries)
            file.unlink(missing_ok=True)
            cleared.append(f"cleared up after run {pid}, which was killed")
    return cleared
