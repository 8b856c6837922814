"""A running task's output, for those who want to see it live: memory that the worker shares with its engine.

The worker writes to it and waits for nobody; the engine reads it a few times a second. One that prints faster than
that overwrites the unread part: the reader sees by the positions how much it has missed. Each stream has twice the room
of one reading, so that a piece that is being written never overlaps a piece that is being read.

A ring is one task's at a time, whose row it names. The worker maps it and keeps no descriptor, which a task could close
and use for a file of its own. The reader takes nothing in it on trust, and reads it as a file. Standard library only.
"""

from __future__ import annotations

import _thread
import fcntl
import mmap
import os
import struct
from collections.abc import Callable

WINDOW = 64 * 1024
"""The most of one stream that is read at a time: what came before it is left out."""
_RING = 2 * WINDOW
_HEADER = struct.Struct("<qqqqq")
"""The row; how many bytes of stdout and of stderr there were since its task began; before which position in either
the ring holds none of them, as they were left out."""
_BEGIN = 64
_SIZE = _BEGIN + 2 * _RING
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create() -> tuple[RingWriter, int]:
    """Return the worker's end of a new ring, and a descriptor for the engine's. Raises OSError."""
    descriptor = os.memfd_create("mep-output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, _SIZE)  # a page that there is no memory for would kill the worker
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return RingWriter(mmap.mmap(descriptor, _SIZE)), descriptor
    except (OSError, ValueError) as error:
        os.close(descriptor)
        raise OSError(str(error)) from error


class RingWriter:
    """The worker's end."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory, self._pid = memory, os.getpid()
        self._row, self._written, self._floor = 0, [0, 0], [0, 0]
        self._lock = _thread.allocate_lock()

    def begin(self, row: int) -> Callable[[int, bytes | memoryview, int], None]:
        """Return what takes the output of this task."""
        self._row, self._written, self._floor = row, [0, 0], [0, 0]
        _HEADER.pack_into(self._memory, 0, row, 0, 0, 0, 0)
        return self._write

    def _write(self, stream: int, data: bytes | memoryview, skipped: int) -> None:
        if os.getpid() != self._pid:  # a child that the task has forked: its positions are its own
            return
        with self._lock:
            more = max(0, len(data) - WINDOW)
            at, begin = self._written[stream] + skipped + more, _BEGIN + stream * _RING
            left = memoryview(data)[more:]
            if skipped or more:
                self._floor[stream] = at
            while left:
                offset = at % _RING
                count = min(len(left), _RING - offset)
                self._memory[begin + offset : begin + offset + count] = left[:count]
                at, left = at + count, left[count:]
            self._written[stream] = at
            _HEADER.pack_into(self._memory, 0, self._row, *self._written, *self._floor)


class RingReader:
    """The engine's end. Takes the descriptor over."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._row, self._read = 0, [0, 0]

    def read(self, row: int, most: int) -> list[tuple[int, int, bytes]]:
        """Return the output of the task of this row since the last call: stream, position and data, the last `most`
        bytes of each stream. Nothing where the ring is another task's."""
        if row != self._row:
            self._row, self._read = row, [0, 0]
        found = []
        before = self._header()
        for stream in (0, 1) if before is not None and before[0] == row else ():
            assert before is not None
            piece = self._piece(stream, before[1 + stream], before[3 + stream], min(most, WINDOW))
            if piece is not None:
                found.append((stream, *piece))
        return found

    def _piece(self, stream: int, written: int, floor: int, most: int) -> tuple[int, bytes] | None:
        """Return the position and the data of the new part of one stream, less all that was overwritten."""
        start = max(self._read[stream], written - most, floor)
        if written <= start:
            return None
        data = self._bytes(stream, start, written - start)
        after = self._header()
        if after is None or after[0] != self._row or len(data) != written - start:
            return None
        lost = max(0, after[1 + stream] - WINDOW - start)
        self._read[stream] = written
        return (start + lost, data[lost:]) if lost < len(data) else None

    def _bytes(self, stream: int, start: int, count: int) -> bytes:
        offset, begin = start % _RING, _BEGIN + stream * _RING
        first = min(count, _RING - offset)
        data = os.pread(self._descriptor, first, begin + offset)
        return data + os.pread(self._descriptor, count - first, begin) if count > first else data

    def _header(self) -> tuple[int, int, int, int, int] | None:
        try:
            return _HEADER.unpack(os.pread(self._descriptor, _HEADER.size, 0))
        except (OSError, struct.error):  # a task has sent another file
            return None

    def close(self) -> None:
        """Give it up."""
        os.close(self._descriptor)


def open_ring(descriptor: int) -> RingReader | None:
    """Return the engine's end of a descriptor that a worker has sent; None, and it is closed, where that is no ring.
    A read of another file might wait."""
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS and os.fstat(descriptor).st_size == _SIZE:
            return RingReader(descriptor)
    except OSError:
        pass
    os.close(descriptor)
    return None
