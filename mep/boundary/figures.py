"""The page of figures: one fixed-size record in memory, written by a user endpoint and read when somebody looks.

The keeper makes it (a memfd of PAGE_BYTES that can neither grow nor shrink), the user endpoint inherits it, and the
monitor reads it for `mep status` and `mep top`. So figures cost nothing while nobody looks: no message, no wake-up. The
writer is a person's process, so the reader trusts nothing: every field has a fixed place and size, texts are cut at
the first NUL and shown only with control characters escaped. Standard library only; used by keeper, monitor, command
line and user endpoint. Without dataclasses, which would slow the start of a user endpoint.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import NamedTuple

PAGE_BYTES = 4096
_MAGIC = b"MEPFIG01"
_NUMBERS = struct.Struct("<8sQdQQQQ")
_SIZES = (("values", 1024), ("blocks", 1024), ("trouble", 512), ("failure", 512), ("log_path", 512))
_TAIL = struct.Struct("<Q")
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEALS = 1 | 2 | 4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


class Figures(NamedTuple):
    """What a user endpoint says of itself."""

    at: float = 0.0
    """When it was written, in seconds since the epoch."""
    waiting: int = 0
    """Tasks that it holds and has not begun."""
    running: int = 0
    done: int = 0
    """Tasks ended since its start, those that failed among them."""
    failed: int = 0
    values: str = ""
    """The person's user_endpoint_config, as JSON."""
    blocks: str = ""
    """Blocks with their jobs: `0 job 1234 running, 1 job 1235 pending`."""
    trouble: str = ""
    """What the engine tries again while tasks wait."""
    failure: str = ""
    """The last failure of a task or a block."""
    log_path: str = ""


def make_page() -> int:
    """Return a new page's descriptor (close-on-exec), for a user endpoint to inherit."""
    descriptor = os.memfd_create("mep-figures", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, PAGE_BYTES)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def is_page(descriptor: int) -> bool:
    """Whether a descriptor is such a page: reading one cannot block."""
    try:
        sealed = fcntl.fcntl(descriptor, _F_GET_SEALS) & _SEALS == _SEALS
        return sealed and os.fstat(descriptor).st_size == PAGE_BYTES
    except OSError:
        return False


def encode(figures: Figures, number: int) -> bytes:
    """Return the page with `figures`. `number` differs from that of the page before."""
    counts = (figures.waiting, figures.running, figures.done, figures.failed)
    parts = [_NUMBERS.pack(_MAGIC, number, figures.at, *counts)]
    for name, size in _SIZES:
        text = str(getattr(figures, name)).replace("\0", " ").encode("utf-8", "replace")
        if len(text) > size:
            text = text[: size - 3].decode("utf-8", "ignore").encode() + "…".encode()
        parts.append(text.ljust(size, b"\0"))
    parts.append(_TAIL.pack(number))
    return b"".join(parts).ljust(PAGE_BYTES, b"\0")


def decode(page: bytes) -> Figures | None:
    """Return the figures of a page; None if it is empty, foreign or was being written."""
    if len(page) != PAGE_BYTES:
        return None
    magic, number, at, *counts = _NUMBERS.unpack_from(page)
    offset, texts = _NUMBERS.size, dict[str, str]()
    for name, size in _SIZES:
        texts[name] = page[offset : offset + size].partition(b"\0")[0].decode("utf-8", "replace")
        offset += size
    if magic != _MAGIC or _TAIL.unpack_from(page, offset)[0] != number:
        return None
    waiting, running, done, failed = counts
    return Figures(at, waiting, running, done, failed, *(texts[name] for name, _ in _SIZES))


def read_page(descriptor: int) -> bytes:
    """Return the content of a page; empty for anything else."""
    try:
        return os.pread(descriptor, PAGE_BYTES, 0) if is_page(descriptor) else b""
    except OSError:
        return b""
