"""The start journals of one user endpoint: those of its own workers, and those of earlier processes.

Kept in RUN/begun: a directory `open-N` for the workers of this life of the user endpoint (or of its interchange),
and `closed` with the files of workers that were given up. Closing a worker's file both fences the worker off and
lets its notes be read (see workers.start_journal). A whole directory is closed once it could be removed, which the
file system allows only when it is empty. Any number of user endpoints may die between the moment a task begins and the
moment it is requested again. The contents of closed files are therefore kept for as long as a task may wait. The
files are the user's own. Called by the engines; no pathlib, since the process engine's start is measured.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from mep_wire.errors import EngineFailed, MepError, UserEndpointLost
from user_endpoint.engines.base import EngineTask
from user_endpoint.run_directory import make_below
from user_endpoint.shortage import SCARCE
from user_endpoint.workers.start_journal import KEY_BYTES, key_of, name_of, names_of, read_notes

KEEP_S: Final = 15 * 86400.0
"""Seconds for which journals are kept. The relay lets a task wait for two weeks."""
_CLOSE_S: Final = 60.0
_MOST_BYTES: Final = 8 * 1024 * 1024
"""Largest size of the kept notes: the keys of 350,000 tasks."""
_KEYS: Final = "keys-"


class StartJournals:
    """See the module. `run_directory` is the user endpoint's own. Not to be used by two processes at once."""

    def __init__(self, run_directory: str) -> None:
        self._run_directory, self._root = run_directory, f"{run_directory}/begun"
        self._closed = f"{self._root}/closed"
        self._before: set[bytes] = set()
        self.known = not os.path.isdir(self._root)  # noqa: PTH112
        """Whether the tasks that workers of earlier processes had begun are known."""

    def begin(self) -> str:
        """Look back, and return a new directory; empty on a full disk, where tasks run without notes.

        Raises OSError, where notes of earlier processes can't be read just now, and EngineFailed where they can't be
        read at all: tasks that had begun would begin again.
        """
        earlier = os.path.isdir(self._root)  # noqa: PTH112
        try:
            self.look_back()
        except OSError as error:
            if earlier and error.errno in SCARCE:
                raise
            if earlier:
                reason = f"the notes of tasks that an earlier process had begun cannot be read: {error.strerror}"
                raise EngineFailed(reason=reason, detail=self._root) from error
            return ""
        with contextlib.suppress(OSError):
            return self.open()
        return ""

    def look_back(self) -> None:
        """Fence off the workers of earlier processes and read which tasks they had begun. Raises OSError."""
        make_below(self._run_directory, self._closed)
        for name in os.listdir(self._root):  # noqa: PTH208
            if name.startswith("open-"):
                self.close(f"{self._root}/{name}")
        self._condense()
        room = _MOST_BYTES
        for name in sorted(os.listdir(self._closed), reverse=True):  # noqa: PTH208
            if not name.startswith(_KEYS):
                continue  # the disk was full, and `_condense` has left it
            path = f"{self._closed}/{name}"
            known = os.stat(path)  # noqa: PTH116
            room -= known.st_size
            if room >= 0:  # also of a file that is old: the clock may be wrong, or have been
                with open(path, "rb") as file:
                    data = file.read()
                self._before.update(data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES))
            if room < 0 or known.st_mtime < time.time() - KEEP_S:
                os.unlink(path)  # noqa: PTH108
        self.known = True

    def _condense(self) -> None:
        """Condense the closed files into one that has only tasks' keys. On a full disk they stay. Raises OSError."""
        files = [f"{self._closed}/{name}" for name in os.listdir(self._closed) if not name.startswith(_KEYS)]  # noqa: PTH208
        keys = {key for path in files for key in read_notes(path).values()}
        self._before |= keys
        if keys:
            try:
                self._write(b"".join(keys))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                return
        for path in files:
            os.unlink(path)  # noqa: PTH108

    def _write(self, keys: bytes) -> None:
        """Add a file of keys, or nothing. Raises OSError."""
        new = f"{self._root}/new"
        try:
            with open(new, "wb") as file:
                file.write(keys)
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, f"{self._closed}/{_KEYS}{time.time_ns():020d}")  # noqa: PTH104
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)  # noqa: PTH108
            raise

    def was_begun(self, task_id: str, attempt: int) -> bool:
        """Tell whether an earlier process's worker had begun this attempt; asked again, it is taken to be told."""
        if not self._before:
            return False
        key = key_of(task_id, attempt)
        found = key in self._before
        self._before.discard(key)
        return found

    def without_begun(
        self, tasks: Sequence[EngineTask], end: Callable[[EngineTask, MepError], None]
    ) -> Sequence[EngineTask]:
        """Return the tasks of which an earlier process had not begun this attempt. `end` is called with the others."""
        begun = {task.row for task in tasks if self.was_begun(task.task_id, task.attempt)}
        if not begun:
            return tasks
        for task in tasks:
            if task.row in begun:
                end(task, UserEndpointLost(reason="it was killed"))
        return [task for task in tasks if task.row not in begun]

    def open(self) -> str:
        """Return a new directory for the files of workers. Raises OSError."""
        directory = f"{self._root}/open-{time.time_ns():x}"
        make_below(self._run_directory, self._root)
        os.mkdir(directory, mode=0o700)  # noqa: PTH102
        return directory

    def close(self, directory: str) -> set[int]:
        """Fence off every worker with a file in `directory`, remove it, and return the tasks they had begun.

        Raises OSError where that cannot be done.
        """
        begun: set[int] = set()
        deadline = time.monotonic() + _CLOSE_S
        while True:
            try:
                found = os.listdir(directory)  # noqa: PTH208
            except FileNotFoundError:
                return begun
            for path in {name_of(f"{directory}/{name}") for name in found}:
                begun |= self._take(path)
            try:
                os.rmdir(directory)  # noqa: PTH106
            except OSError as error:
                # One that is just being made, or a file server's clients have not all heard of.
                if error.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def close_pool(self, directory: str, pool: str) -> set[int]:
        """Fence off the workers of one pool, and return the tasks they had begun. Raises OSError."""
        begun: set[int] = set()
        for name in os.listdir(directory):  # noqa: PTH208
            if name.partition(".")[0] == pool:
                begun |= self._take(name_of(f"{directory}/{name}"))
        return begun

    def _take(self, path: str) -> set[int]:
        kept = f"{self._closed}/{path.removeprefix(self._root).strip('/').replace('/', '.')}"
        for _ in range(100):  # it may take its other name each time, but not for ever
            for name in names_of(path):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(name, kept)  # noqa: PTH104
                    return set(read_notes(kept))
            if not any(map(os.path.exists, names_of(path))):
                break
        return set()

    def forget(self, directory: str) -> None:
        """Remove `directory`: every task that was begun by its workers has had its end. Never raises."""
        with contextlib.suppress(OSError):
            for name in os.listdir(directory):  # noqa: PTH208
                os.unlink(f"{directory}/{name}")  # noqa: PTH108
            os.rmdir(directory)  # noqa: PTH106
