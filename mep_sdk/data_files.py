"""Data by reference in a worker: arguments are loaded from files beside its user endpoint, large results written there.

The files are called by the SHA-256 of their bytes, in a directory that the account alone can enter. The user endpoint
fetches them, and brings those of results to the relay: a worker has no authority of its own there. Each file's bytes
are checked when this process reads it for the first time. Called by serialize and task_runner, which import this only
for a task that needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mep_sdk import data_pickles
from mep_sdk.errors import DataCorrupt
from mep_wire.data_frames import DataFrame, DataFrameInvalid, Part, encode_data, read_data
from mep_wire.errors import DataUnavailable

if sys.platform == "win32":
    NEW_FILE = os.O_CREAT | os.O_EXCL
else:
    NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
LIMIT_FILE = "limit"
"""Holds the size of the largest result that may go by reference, while the relay takes such."""
_checked: dict[bytes, tuple[int, int, int]] = {}
"""Checked files: inode, time of change and size, by digest."""


def load_arguments(payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs) of arguments by reference. Raises DataCorrupt, DataUnreadable, DataUnavailable."""
    frame = _frame(payload, "argument list")
    (count, names), *values = data_pickles.load(frame, _reader(frame.directory), "argument list", "on the endpoint")
    return tuple(values[:count]), dict(zip(names, values[count:], strict=True))


def load_result(payload: bytes) -> Any:
    """Return the value of another task's result by reference. Raises DataCorrupt, DataUnreadable, DataUnavailable."""
    what = "result of another task"
    frame = _frame(payload, what)
    if frame.loads != 1:
        raise DataCorrupt(what=what, reason="it does not say what it refers to")
    return data_pickles.load(frame, _reader(frame.directory), what, "on the endpoint")[0]


def call_values(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the values to pickle for a call, as `load_arguments` reads them."""
    return [(len(args), list(kwargs)), *args, *kwargs.values()]


def store_result(value: object, directory: str) -> bytes:
    """Write a large result in pieces, and return its payload. Raises NotSerializable, DataOverLimit and
    DataUnavailable."""
    most = result_limit(directory)

    def keep(digest: bytes, data: memoryview) -> None:
        _write(f"{directory}/{digest.hex()}", data)

    try:
        return encode_data(data_pickles.dump([value], keep, most, local_by_value=False))
    except OSError as error:
        reason = f"the disk of the user endpoint's directory does not take the result: {error.strerror}"
        raise DataUnavailable(reason=reason) from error


def result_limit(directory: str) -> int:
    """Return the size of the largest result that may go by reference from here; 0 where none may."""
    if directory:
        with contextlib.suppress(OSError, ValueError), open(f"{directory}/{LIMIT_FILE}", encoding="ascii") as file:
            return int(file.read(32))
    return 0


def _frame(payload: bytes, what: str) -> DataFrame:
    try:
        frame = read_data(payload)
    except DataFrameInvalid as error:
        raise DataCorrupt(what=what, reason=str(error)) from error
    assert frame is not None
    return frame


def _reader(directory: str) -> Any:
    def read(parts: Sequence[Part]) -> Iterator[bytes]:
        for part in parts:
            yield _read(directory, part) if part.digest else part.inline

    return read


def _read(directory: str, part: Part) -> bytes:
    try:
        with open(f"{directory}/{part.digest.hex()}", "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            data = file.read(part.size + 1)
    except OSError as error:
        raise DataUnavailable(reason=f"a piece of it cannot be read at the site: {error.strerror}") from error
    seen = (status.st_ino, status.st_mtime_ns, status.st_size)
    if len(data) != part.size or _checked.get(part.digest) != seen:
        if hashlib.sha256(data).digest() != part.digest:
            raise DataUnavailable(reason="a piece of it at the site is damaged: its SHA-256 does not match")
        _checked[part.digest] = seen
    return data


def _write(path: str, data: memoryview) -> None:
    """Write a file whole or not at all. One that is there is used: its name says what it holds. Raises OSError."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_size == data.nbytes:  # noqa: PTH116 - a worker has no pathlib
            os.utime(path)  # it is not to go before the user endpoint has read it
            return
    fresh = f"{path}.{secrets.token_hex(4)}"
    descriptor = os.open(fresh, os.O_WRONLY | NEW_FILE, 0o600)
    try:
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(fresh, path)  # noqa: PTH104 - as above
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)  # noqa: PTH108 - as above
        raise
