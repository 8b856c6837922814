"""Keeps a task's printed output for its person: Python's own streams write to the worker's log as always, and here.

The end of each stream is kept, up to MOST_BYTES. Output of other programs and of C libraries goes to the log alone.
Workers that run one task at a time install it; the task runner then asks for each task's output. While a person
watches a task live, all of its output is also passed to a `Copy`, with the output of a ShellFunction's command.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any

from mep_sdk.foreign_code import attempt

MOST_BYTES = 64 * 1024
"""How much of each stream comes back: its end."""
_NOTE_BYTES = 96
"""What the note of a cut takes at most."""
Copy = Callable[[int, bytes | memoryview, int], object]
"""Takes output: 0 for stdout or 1 for stderr, the data, and how many bytes before it were left out."""
_copy: Copy | None = None


class _Tee(io.RawIOBase):
    """Writes to a descriptor, and keeps the end of it while a task runs."""

    def __init__(self, descriptor: int, name: object) -> None:
        super().__init__()
        self._descriptor, self.name = descriptor, name
        self.kept, self.written, self.keeps = bytearray(), 0, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def write(self, data: Any, /) -> int:
        count = os.write(self._descriptor, data)
        if self.keeps:
            self.take_in(memoryview(data)[:count])
        return count

    def take_in(self, data: bytes | memoryview, skipped: int = 0) -> None:
        """Keep the end of `data`, which `skipped` bytes came before."""
        if skipped:
            self.kept.clear()
        self.kept += data
        self.written += skipped + len(data)
        if len(self.kept) > 2 * MOST_BYTES:
            del self.kept[:-MOST_BYTES]
        if _copy is not None:
            _copy(self._descriptor - 1, data, skipped)

    def take(self, most: int) -> bytes:
        """Return the kept end, of `most` bytes at most, and how much came before it; forget it."""
        kept, lost = bytes(self.kept[-most:]), self.written - min(self.written, most)
        self.kept, self.written = bytearray(), 0
        if not lost:
            return kept
        return f"[{lost:,} bytes came before; the worker's log at the site has more]\n".encode() + kept


_kept: list[tuple[io.TextIOWrapper, _Tee]] = []
"""The streams of this process: those that were there when it was installed."""


def install() -> None:
    """Put streams that keep the output in the place of sys.stdout and sys.stderr, for the life of this process."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        before: Any = getattr(sys, name)
        if isinstance(before, io.TextIOWrapper):
            tee = _Tee(descriptor, before.name)
            buffer: Any = io.BufferedWriter(tee)
            made = io.TextIOWrapper(buffer, before.encoding, before.errors, "\n", before.line_buffering)
            setattr(sys, name, made)
            setattr(sys, f"__{name}__", made)
            _kept.append((made, tee))


def copy_to(copy: Copy | None) -> None:
    """Pass on all output until `end`. `copy` raises nothing."""
    global _copy
    _copy = copy


def is_live() -> bool:
    """Return whether the running task's output is passed on while it runs."""
    return _copy is not None and any(tee.keeps for _, tee in _kept)


def add(stream: int, data: bytes, skipped: int = 0) -> None:
    """Take in output of a program that the task has started: 0 for its stdout, 1 for its stderr."""
    if stream < len(_kept) and _kept[stream][1].keeps:
        _kept[stream][1].take_in(data, skipped)


def begin() -> bool:
    """Keep the output from now on. Return whether this process can: see `install`."""
    for _, tee in _kept:
        tee.keeps = True
    return bool(_kept)


def end(room: int) -> list[bytes]:
    """Return the output of both streams since `begin`, and keep nothing more. Where it needs more than `room` bytes it
    is cut further, and there is none where that leaves too little for a note."""
    for stream, tee in _kept:
        attempt(stream.flush)  # the task may have closed it
        tee.keeps = False
    copy_to(None)
    whole = sum(min(tee.written, MOST_BYTES) + _NOTE_BYTES * (tee.written > MOST_BYTES) for _, tee in _kept)
    most = MOST_BYTES if whole <= room else min(MOST_BYTES, room // 2 - _NOTE_BYTES)
    found = [tee.take(max(1, most)) if tee.written else b"" for _, tee in _kept]
    return found if most > 0 else [b"" for _ in found]
