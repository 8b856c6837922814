"""The directory of data by reference: pieces as files that are called by their SHA-256, for workers and for the relay.

It is below the run directory, so it is the account's alone (mode 0700) and blocks on other hosts see it. Pieces of
arguments are checked before they are written; workers write those of results, and every reader checks again. Files
stay for later tasks until there are too many bytes: the oldest that no task needs go first. Called by DataTransfers.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection
from typing import Final

LIMIT_BYTES: Final = 4 * 1024**3
"""Above this many bytes, pieces that no task needs are removed."""
_YOUNG_S: Final = 60.0
"""A file that was used so lately stays: a worker may have found it, and its user endpoint not heard of that yet."""
_STALE_S: Final = 3600.0
"""A file without its final name is of a process that has died."""
_NAME: Final = 64
_LIMIT_FILE: Final = "limit"


class DataCache:
    """See the module. The directory is made when it is needed."""

    def __init__(
        self, directory: str, *, limit_bytes: int = LIMIT_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        self.directory = directory
        self._limit, self._clock = limit_bytes, clock
        self._sizes: dict[bytes, int] | None = None  # the oldest first
        self._total = 0

    def allow_results(self, most_bytes: int) -> None:
        """Let workers put results of so many bytes here; 0: none. Raises OSError."""
        path = f"{self.directory}/{_LIMIT_FILE}"
        text = b"%d" % most_bytes
        with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
            if file.read(32) == text:
                return
        if most_bytes:
            self._make()
            self._write(path, text)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 - pathlib costs 9 ms at start

    def has(self, digest: bytes) -> bool:
        """Return whether a piece is here, and note that it is used."""
        sizes = self._found()
        size = sizes.get(digest)
        if size is None:
            return False
        with contextlib.suppress(OSError):
            if os.stat(self._path(digest)).st_size == size:  # noqa: PTH116 - as above
                sizes[digest] = sizes.pop(digest)
                os.utime(self._path(digest))
                return True
        self._forget(digest)
        return False

    def put(self, digest: bytes, data: bytes, needed: Callable[[], Collection[bytes]]) -> None:
        """Keep a piece with a checked SHA-256. `needed` returns those that must stay. Raises OSError."""
        self._found()
        self._make_room(len(data), needed)
        try:
            self._write(self._path(digest), data)
        except OSError:  # a full disk or quota: what no task needs goes
            self._make_room(self._limit, needed)
            self._write(self._path(digest), data)
        self._note(digest, len(data))

    def read(self, digest: bytes) -> bytes:
        """Return a piece. Raises OSError."""
        with open(self._path(digest), "rb", buffering=0) as file:
            data = file.read()
        if digest not in self._found():
            self._note(digest, len(data))
        return data

    def _note(self, digest: bytes, size: int) -> None:
        self._forget(digest)
        self._found()[digest] = size
        self._total += size

    def _forget(self, digest: bytes) -> None:
        self._total -= self._found().pop(digest, 0)

    def _path(self, digest: bytes) -> str:
        return f"{self.directory}/{digest.hex()}"

    def _make(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.directory, 0o700)  # noqa: PTH102 - as above

    def _write(self, path: str, data: bytes) -> None:
        fresh = f"{path}.{os.urandom(4).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(fresh, flags, 0o600)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            finally:
                os.close(descriptor)  # where a quota of NFS may still refuse
            os.rename(fresh, path)  # noqa: PTH104 - as above
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(fresh)  # noqa: PTH108 - as above
            raise

    def _make_room(self, size: int, needed: Callable[[], Collection[bytes]]) -> None:
        sizes = self._found()
        if self._total + size <= self._limit:
            return
        kept = needed()
        for digest in [each for each in sizes if each not in kept]:
            if self._is_old(digest):
                with contextlib.suppress(OSError):
                    os.unlink(self._path(digest))  # noqa: PTH108 - as above
                self._forget(digest)
            if self._total + size <= self._limit:
                return

    def _is_old(self, digest: bytes) -> bool:
        try:
            return os.stat(self._path(digest)).st_mtime < self._clock() - _YOUNG_S  # noqa: PTH116 - as above
        except OSError:
            return True

    def _found(self) -> dict[bytes, int]:
        """Return the pieces here: the files of earlier processes are found once, and left-overs removed."""
        if self._sizes is not None:
            return self._sizes
        self._sizes, found = {}, []
        self._make()
        for entry in os.scandir(self.directory):
            with contextlib.suppress(OSError, ValueError):
                status = entry.stat(follow_symlinks=False)
                if len(entry.name) == _NAME:
                    found.append((status.st_mtime, bytes.fromhex(entry.name), status.st_size))
                elif "." in entry.name and status.st_mtime < self._clock() - _STALE_S:
                    os.unlink(entry.path)  # noqa: PTH108 - as above
        for _, digest, size in sorted(found):
            self._sizes[digest] = size
            self._total += size
        return self._sizes
