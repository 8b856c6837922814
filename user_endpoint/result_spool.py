"""Results that the relay has not yet on its disk, kept on ours: an append-only log in small segment files.

A result is written to its segment in the same turn of the loop that sends it. That is enough to survive the death
of this process. A result that the relay has not confirmed after a moment is also forced to the disk, to survive the
host's crash. A lone task therefore waits for no disk, and nothing is lost while the relay is away. Results left by an
earlier process of the same user endpoint are found and sent again: results are keyed by task, and the relay
confirms those it already has. A segment is removed once all its results are confirmed.

A full disk (or quota) is no error: results stay in memory and `is_full` says that no further task may come.
The directory is this user's alone (paths.py). Called by the user endpoint, which is the only writer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from mep_wire.messages import ResultItem

SEGMENT_BYTES: Final = 8 * 1024 * 1024
LIMIT_BYTES: Final = 512 * 1024 * 1024
"""Above this many bytes of unconfirmed results no task is requested."""
MEMORY_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""The same for results that the disk did not take."""
SYNC_AFTER_S: Final = 0.25
"""A result unconfirmed for this long is forced to the disk."""
RETRY_S: Final = 5.0
"""Pause before a disk that refused results is tried again."""
_WORTH_REMOVING_BYTES: Final = 1024 * 1024
"""A file with less than this is written on rather than removed, though all in it is confirmed."""
_HEADER: Final = 8
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ResultItem)


def encode_record(item: ResultItem) -> bytes:
    """Return one record: length, CRC-32, MessagePack."""
    body = _encoder.encode(item)
    return len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body


def read_records(data: bytes) -> tuple[list[tuple[int, ResultItem]], int]:
    """Return (offset, result) of every sound record in `data`, and the end of its readable part.

    A damaged record costs only itself as long as its length makes sense.
    """
    found: list[tuple[int, ResultItem]] = []
    at = 0
    while at + _HEADER <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + _HEADER : at + _HEADER + size]
        if not size or len(body) != size:
            break
        if zlib.crc32(body) == int.from_bytes(data[at + 4 : at + _HEADER], "big"):
            with contextlib.suppress(msgspec.MsgspecError):
                found.append((at, _decoder.decode(body)))
        at += _HEADER + size
    return found, at


class _Segment:
    def __init__(self, path: str, *, create: bool) -> None:
        self.path = path
        self.descriptor = os.open(path, _FLAGS | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        self.size = os.fstat(self.descriptor).st_size
        self.pending = 0

    def append(self, data: bytes) -> None:
        """Write all of `data` at the end, or none of it. Raises OSError."""
        view, at = memoryview(data), self.size
        try:
            while view:
                written = os.pwrite(self.descriptor, view, at)
                view, at = view[written:], at + written
        except OSError:
            os.ftruncate(self.descriptor, self.size)
            raise
        self.size = at

    def read(self, offset: int, size: int) -> ResultItem:
        data = os.pread(self.descriptor, size, offset)
        try:
            return _decoder.decode(data[_HEADER:])
        except msgspec.MsgspecError as error:
            raise OSError(errno.EIO, f"a damaged record: {error}") from error

    def record_size(self, offset: int) -> int:
        return _HEADER + int.from_bytes(os.pread(self.descriptor, 4, offset), "big")

    def remove(self) -> None:
        """Close and delete. A file that cannot be deleted is sent again by the next process, which harms nothing."""
        os.close(self.descriptor)
        with contextlib.suppress(OSError):
            os.unlink(self.path)  # noqa: PTH108  # pathlib costs 9 ms at start


class Spool:
    """See the module. `report` is told, once each time, when the disk begins to refuse results."""

    def __init__(
        self,
        directory: str,
        *,
        report: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.monotonic,
        limit_bytes: int = LIMIT_BYTES,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    ) -> None:
        self._directory, self._report, self._clock = directory, report, clock
        self._limits = (limit_bytes, memory_limit_bytes)
        self._where: dict[int, tuple[_Segment, int, int]] = {}  # row -> segment, offset, size of record
        self._unsynced: dict[int, ResultItem] = {}  # in the active segment, and not yet known to be on the disk
        self._memory: dict[int, ResultItem] = {}
        self._disk_bytes = self._memory_bytes = 0
        self._segments: list[_Segment] = []
        self._active: _Segment | None = None
        self._tick_at: float | None = None
        self._refusing = False

    # --- state ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._where) + len(self._memory)

    @property
    def rows(self) -> list[int]:
        """Every row with an unconfirmed result."""
        return [*self._where, *self._memory]

    @property
    def is_full(self) -> bool:
        """Whether to request no task until some results are confirmed."""
        return self._disk_bytes > self._limits[0] or self._memory_bytes > self._limits[1]

    @property
    def tick_at(self) -> float | None:
        """When `tick` should be called, by the clock, or None."""
        return self._tick_at

    # --- results --------------------------------------------------------------------------------------

    def recover(self) -> int:
        """Take over the results that earlier processes left; return how many. Raises OSError."""
        names = sorted(name for name in os.listdir(self._directory) if name.endswith(".seg"))  # noqa: PTH208  # as above
        for name in names:
            segment = _Segment(f"{self._directory}/{name}", create=False)
            records, end = read_records(os.pread(segment.descriptor, segment.size, 0))
            if end < segment.size:
                os.ftruncate(segment.descriptor, end)
                segment.size = end
            self._segments.append(segment)
            for offset, item in records:
                self._index(item.row, segment, offset, segment.record_size(offset))
        self._remove_confirmed()
        return len(self)

    def add(self, items: Sequence[ResultItem]) -> None:
        """Keep these results until they are confirmed. Never raises: results that the disk refuses stay in memory."""
        records = [encode_record(item) for item in items]
        try:
            segment = self._writable()
            offset = segment.size
            segment.append(b"".join(records))
        except OSError as error:
            self._keep_in_memory(items, error)
            return
        for item, record in zip(items, records, strict=True):
            self._index(item.row, segment, offset, len(record))
            self._unsynced[item.row] = item
            offset += len(record)
        self._refusing = False
        if self._tick_at is None:
            self._tick_at = self._clock() + SYNC_AFTER_S

    def durable(self, rows: Sequence[int]) -> None:
        """The relay has these results on its disk."""
        for row in rows:
            self._forget(row)
        if not len(self):
            self._tick_at = None
        if self._active is not None and not self._active.pending and self._active.size > _WORTH_REMOVING_BYTES:
            self._retire_active()
        if self._segments:
            self._remove_confirmed()

    def get(self, row: int) -> ResultItem | None:
        """Return the unconfirmed result of `row`, if there is one. One that its disk has lost is reported, and none."""
        if row in self._unsynced:
            return self._unsynced[row]
        position = self._where.get(row)
        if position is None:
            return self._memory.get(row)
        try:
            return position[0].read(*position[1:])
        except OSError as error:
            self._report(f"a result cannot be read back from the disk: {error.strerror}")
            self._forget(row)
            return None

    def unconfirmed(self) -> Iterator[ResultItem]:
        """Every unconfirmed result, oldest first, to be sent again: read one at a time."""
        for row in self.rows:
            item = self.get(row)
            if item is not None:  # else it has since been confirmed
                yield item

    def tick(self) -> None:
        """Force results unconfirmed for too long to the disk; move results from memory to a disk with room."""
        if self._tick_at is None or self._clock() < self._tick_at:
            return
        self._tick_at = None
        if self._memory:
            items = list(self._memory.values())
            self._memory.clear()
            self._memory_bytes = 0
            self.add(items)
        self._sync()

    def close(self) -> None:
        """Remove confirmed results and close the files; unconfirmed ones stay for the next process."""
        if self._where:
            self._sync()
        self._retire_active()
        self._remove_confirmed()
        for segment in self._segments:
            os.close(segment.descriptor)
        self._segments.clear()

    # --- inside ---------------------------------------------------------------------------------------

    def _writable(self) -> _Segment:
        if self._active is not None and self._active.size >= SEGMENT_BYTES:
            self._sync()
            self._retire_active()
        if self._active is None:
            path = f"{self._directory}/{time.time_ns():020d}.seg"
            self._active = _Segment(path, create=True)
        return self._active

    def _sync(self) -> None:
        """Force the active segment to the disk.

        If write-back fails (an NFS quota, say), the kernel drops the dirty pages and reports it once, on fsync(2).
        Everything since the last good fsync is requeued in memory and written to another file.
        """
        if self._active is None:
            return
        try:
            os.fdatasync(self._active.descriptor)
        except OSError as error:
            items = list(self._unsynced.values())
            self._retire_active()
            self._keep_in_memory(items, error)
        self._unsynced.clear()

    def _retire_active(self) -> None:
        if self._active is not None:
            self._segments.append(self._active)
            self._active = None

    def _index(self, row: int, segment: _Segment, offset: int, size: int) -> None:
        self._forget(row)
        self._where[row] = (segment, offset, size)
        segment.pending += 1
        self._disk_bytes += size

    def _forget(self, row: int) -> None:
        self._unsynced.pop(row, None)
        position = self._where.pop(row, None)
        if position is not None:
            position[0].pending -= 1
            self._disk_bytes -= position[2]
        item = self._memory.pop(row, None)
        if item is not None:
            self._memory_bytes -= len(item.payload)

    def _remove_confirmed(self) -> None:
        for segment in [segment for segment in self._segments if not segment.pending]:
            segment.remove()
            self._segments.remove(segment)

    def _keep_in_memory(self, items: Sequence[ResultItem], error: OSError) -> None:
        if not self._refusing:
            self._refusing = True
            self._report(f"results cannot be written to disk and stay in memory: {error.strerror}")
        for item in items:
            self._forget(item.row)
            self._memory[item.row] = item
            self._memory_bytes += len(item.payload)
        self._tick_at = self._clock() + RETRY_S
