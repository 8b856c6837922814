"""Records which tasks a worker has begun, in a file that outlives it and that others can close to it.

If a worker or a user endpoint is killed, its last reports may be lost. A worker therefore notes a task here before
it begins it, so that a task that may have had effects can be told from one that never ran. A note is three stores
into a mapped page, and takes about 0.5 microseconds.

Where a worker may outlive its user endpoint (a node of a cluster), its file is also its fence. The file has two
names in turn, and the worker gives it the other one between the note and the task. A process that gives the worker up
takes the file away by renaming it too (see engines.start_journals). The file system decides who was first: if it was
the worker, its note can be read; if not, the worker begins no more tasks. Where hosts share files, each note is also
flushed to the file system: other hosts may see a mapped page seconds late.

Standard library only, as in all of this package.
"""

from __future__ import annotations

import mmap
import os
import struct

PLAIN, FENCED, FORCED = "plain", "fenced", "forced"
"""How a file is used: by its one name; as a fence; as a fence of which other hosts must see every note."""
_SLOTS = 1024
"""The number of latest tasks that a file records: far more than one worker can hold unreported."""
KEY_BYTES = 24
_COUNT = struct.Struct("<q")
_NOTE = struct.Struct(f"<q{KEY_BYTES}s")
_SIZE = _COUNT.size + _SLOTS * _NOTE.size
FIRST, _SECOND = _NAMES = ".a", ".b"


class JournalClosed(Exception):
    """This worker has been given up: it may begin no more tasks."""


def create(path: str, how: str) -> None:
    """Make the file in which a worker will note the tasks that it begins. Raises OSError."""
    name = path if how == PLAIN else path + FIRST
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _SIZE)  # a page that the disk has no room for would kill the worker
    finally:
        os.close(descriptor)


def name_of(found: str) -> str:
    """Return the path that `create` was given, from one of the file's names."""
    return found[:-2] if found.endswith(_NAMES) else found


def names_of(path: str) -> tuple[str, ...]:
    """Return every name that the file may have."""
    return (path, *(path + name for name in _NAMES))


def key_of(task_id: str, attempt: int) -> bytes:
    """Return the key of one attempt at a task, as a note holds it."""
    try:
        raw = bytes.fromhex(task_id.replace("-", ""))
    except ValueError:
        raw = task_id.encode()  # only tests have such
    return raw[: KEY_BYTES - 2].ljust(KEY_BYTES - 2, b"\0") + (attempt % 65536).to_bytes(2, "big")


class StartJournal:
    """The writing end. A worker that replaces another goes on in its file. Raises JournalClosed."""

    def __init__(self, path: str, how: str) -> None:
        self._now = path
        self._forced = how == FORCED
        self._other = ""
        descriptor = self._open(path) if how == PLAIN else self._open_fence(path)
        try:
            self._map = mmap.mmap(descriptor, _SIZE)
        except (OSError, ValueError) as error:
            raise JournalClosed(path) from error
        finally:
            os.close(descriptor)
        (self._count,) = _COUNT.unpack_from(self._map)

    def _open_fence(self, path: str) -> int:
        first, second = path + FIRST, path + _SECOND
        for self._now, self._other in ((first, second), (second, first), (first, second)):
            try:
                return self._open(self._now)
            except JournalClosed:
                continue  # or the worker before, which is being killed, has just renamed it
        raise JournalClosed(path)

    @staticmethod
    def _open(name: str) -> int:
        try:
            return os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise JournalClosed(name) from error

    def note(self, row: int, task_id: str, attempt: int = 1) -> bool:
        """Say that this task begins. Returns whether it may: if not, this worker has been given up."""
        _NOTE.pack_into(self._map, _COUNT.size + self._count % _SLOTS * _NOTE.size, row, key_of(task_id, attempt))
        self._count += 1
        _COUNT.pack_into(self._map, 0, self._count)
        if not self._other:
            return True
        try:
            if self._forced:
                self._map.flush()
            os.rename(self._now, self._other)  # noqa: PTH104 - no pathlib in a worker
        except OSError:
            return False
        self._now, self._other = self._other, self._now
        return True


class JournalView:
    """The reading end, of a live worker's file. Raises OSError."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._map = mmap.mmap(descriptor, _SIZE, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)

    def last(self) -> int:
        """Return the row of the task that began last, 0 where there is none."""
        (count,) = _COUNT.unpack_from(self._map)
        if not count:
            return 0
        row: int = _NOTE.unpack_from(self._map, _COUNT.size + (count - 1) % _SLOTS * _NOTE.size)[0]
        return row


def read_notes(path: str) -> dict[int, bytes]:
    """Return the row and the key of each task noted in a file; none where there is no such file. Raises OSError."""
    try:
        with open(path, "rb") as file:
            data = file.read(_SIZE)
    except FileNotFoundError:
        return {}
    if len(data) < _SIZE:
        return {}
    (count,) = _COUNT.unpack_from(data)
    return dict(_NOTE.iter_unpack(data[_COUNT.size : _COUNT.size + min(count, _SLOTS) * _NOTE.size]))
