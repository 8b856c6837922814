"""Values too large for a payload: pickled in parts, and loaded from parts, with no more than some parts in memory.

pickle hands each large buffer (a NumPy array's, a bytes object's) to its file in one write of its own. Such a write
becomes pieces of its own here, so the same array has the same pieces in every task, whatever stands beside it. Small
writes are gathered. Each argument is a pickle of its own with the memo of those before it: equal arguments give equal
bytes, and an object that is in two of them stays one.

Called by the SDK (data_transfer) and in workers (data_files); they say where pieces are kept.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mep_sdk import encoding
from mep_sdk.errors import DataCorrupt
from mep_wire.data_frames import DataFrame, Part
from mep_wire.limits import DATA_PIECE_BYTES

OWN_PIECE_BYTES = 1024 * 1024
"""A buffer of so many bytes begins a piece of its own."""
INLINE_BYTES = 16 * 1024
"""Gathered bytes up to this size stay in the frame."""
Keep = Callable[[bytes, memoryview], None]
"""Is given a piece's SHA-256 and its bytes, which it keeps or sends before it returns or copies."""


class DataOverLimit(Exception):
    """A value has more bytes than may go by reference."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(size)


def as_bytes(data: Any) -> memoryview:
    """Return the bytes of what pickle writes: bytes, or the buffer of an object."""
    return data.raw() if isinstance(data, pickle.PickleBuffer) else memoryview(data).cast("B")


class Splitter:
    """A file for a pickler that makes parts of its bytes. Raises DataOverLimit beyond `most` bytes."""

    def __init__(self, keep: Keep, most: int) -> None:
        self._keep, self._most = keep, most
        self._gathered = bytearray()
        self.parts: list[Part] = []
        self.size = 0

    def write(self, data: Any) -> int:
        """Take some bytes."""
        view = as_bytes(data)
        self.size += view.nbytes
        if self.size > self._most:
            raise DataOverLimit(self.size)
        if view.nbytes >= OWN_PIECE_BYTES:
            self.end()
            for at in range(0, view.nbytes, DATA_PIECE_BYTES):
                self._piece(view[at : at + DATA_PIECE_BYTES])
            return view.nbytes
        if len(self._gathered) + view.nbytes > DATA_PIECE_BYTES:
            self.end()
        self._gathered += view
        return view.nbytes

    def end_value(self) -> None:
        """Make a part of the gathered bytes, so that the next value has parts of its own."""
        self.end()

    def end(self) -> None:
        """Make a part of the gathered bytes."""
        gathered, self._gathered = bytes(self._gathered), bytearray()
        if len(gathered) > INLINE_BYTES:
            self._piece(memoryview(gathered))
        elif gathered:
            self.parts.append(Part(len(gathered), b"", gathered))

    def _piece(self, view: memoryview) -> None:
        digest = hashlib.sha256(view).digest()
        self._keep(digest, view)
        self.parts.append(Part(view.nbytes, digest))


class _Counter:
    """A file that only counts."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        """Count some bytes."""
        size = as_bytes(data).nbytes
        self.size += size
        return size

    def end_value(self) -> None:
        """A value ends."""


def size_of(values: Sequence[object], *, local_by_value: bool) -> int:
    """Return how many bytes these values have when they are pickled. Raises NotSerializable."""
    counter = _Counter()
    encoding.dump_into(lambda: counter, values, local_by_value=local_by_value)
    return counter.size


def dump(values: Sequence[object], keep: Keep, most: int, *, local_by_value: bool) -> DataFrame:
    """Pickle values one after the other, hand their pieces to `keep`, and return the frame of all. Raises
    NotSerializable, DataOverLimit, and what `keep` raises."""
    made: list[Splitter] = []

    def splitter() -> Splitter:
        made.append(Splitter(keep, most))
        return made[-1]

    kind, tag = encoding.dump_into(splitter, values, local_by_value=local_by_value)
    made[-1].end()
    return DataFrame(kind, tag, len(values), made[-1].parts)


def load_whole(data: bytes, tag: str, what: str, where: str) -> Any:
    """Return the value of one pickle. Raises DataUnreadable."""
    return encoding.load_with(lambda: pickle.loads(data), tag, what, where)  # noqa: S301 - see encoding's docstring


class _Reader(io.RawIOBase):
    """The parts, one after the other, as a file."""

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        super().__init__()
        self._parts = iter(parts)
        self._part = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; return how many bytes there were."""
        into = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(into) and self._fill():
            some = self._part[: len(into) - filled]
            into[filled : filled + len(some)] = some
            self._part = self._part[len(some) :]
            filled += len(some)
        return filled

    def read(self, size: int | None = -1) -> bytes:
        """Return up to so many bytes."""
        if size is None or size < 0:
            return super().readall()
        data = bytearray(size)
        return bytes(memoryview(data)[: self.readinto(data)])

    def _fill(self) -> bool:
        while not self._part:
            following = next(self._parts, None)
            if following is None:
                return False
            self._part = memoryview(following)
        return True


def load(frame: DataFrame, read: Callable[[Sequence[Part]], Iterator[bytes]], what: str, where: str) -> list[Any]:
    """Return the values of a frame. `read` yields the bytes of parts, in order. Raises DataCorrupt, DataUnreadable,
    and what `read` raises."""
    failed: list[BaseException] = []

    def parts() -> Iterator[bytes]:
        try:
            yield from read(frame.parts)
        except BaseException as error:
            failed.append(error)
            raise

    if frame.kind not in (encoding.PICKLE, encoding.CLOUDPICKLE):
        raise DataCorrupt(what=what, reason=f"its kind is {frame.kind!r}")
    unpickler = pickle.Unpickler(_Reader(parts()))  # noqa: S301 - see encoding's docstring
    try:
        return encoding.load_with(lambda: [unpickler.load() for _ in range(frame.loads)], frame.tag, what, where)
    except Exception:
        if failed:  # it says why, and the unpickler only that an end is missing
            raise failed[0] from None
        raise
