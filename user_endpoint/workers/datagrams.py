"""The messages between the process engine, its fork server and its workers: whole values over SOCK_SEQPACKET.

One datagram is one value, and the kernel decides who gets it. The process that reads a task's datagram owns the
task; this is how the engine takes back a task that a worker has not begun. A large value goes into a memfd, and
its descriptor is sent instead. All three processes are the same user's; nothing here crosses a privilege boundary,
and marshal is used because it costs neither an import nor any time.

Called by the process engine, the fork server and the workers.
"""

from __future__ import annotations

import _socket  # the C module: `socket` itself costs each worker a megabyte
import marshal
import os
import sys
from typing import Any

NEED_FUNCTION = "NEED_FUNCTION"
"""Answer of a worker that was sent a task without its function, and has not (or no longer) got it."""
OUTPUT_RING = "OUTPUT_RING"
"""What a worker sends with the descriptor of an output ring, before the first task that needs one."""
BEGUN_VARIABLE = "MEP_BEGUN"
"""Environment variable with a worker's kind of start journal and its path, as HOW:PATH; not passed on to tasks."""
INLINE_BYTES = 64 * 1024
"""A value larger than this, encoded, goes by memfd: datagrams are limited by the socket's send buffer."""
_BY_DESCRIPTOR = b"M"
_FD_BYTES = 4
_ROOM = 64  # ancillary space for one descriptor, aligned
_buffer = bytearray(INLINE_BYTES + 1)
_view = memoryview(_buffer)

Value = Any
"""The values that marshal takes: here tuples of int, float, str, bytes and None."""


class PeerGone(Exception):
    """The other end has closed its socket, or sent bytes that are not a value."""


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Return two connected ends, close-on-exec, with room for a queue of small tasks."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 4 * INLINE_BYTES)
    return ours, theirs


def send(sock: _socket.socket, value: Value, descriptor: int = -1) -> None:
    """Send `value`, and `descriptor` unless negative. Raises BlockingIOError, or OSError when the peer is gone."""
    data = marshal.dumps(value)
    if len(data) <= INLINE_BYTES:
        if descriptor < 0:
            sock.send(data)
        else:
            _send_with(sock, data, descriptor)
        return
    memfd = os.memfd_create("mep-task", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(memfd, view) :]
        _send_with(sock, _BY_DESCRIPTOR, memfd)
    finally:
        os.close(memfd)


def _send_with(sock: _socket.socket, data: bytes, descriptor: int) -> None:
    rights = descriptor.to_bytes(_FD_BYTES, sys.byteorder)
    sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])


def receive(sock: _socket.socket, flags: int = 0) -> tuple[Value, int]:
    """Return the next value and the descriptor that came with it (or -1). Raises BlockingIOError, PeerGone."""
    try:
        size, ancillary, _, _ = sock.recvmsg_into([_view], _ROOM, flags | _socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError as error:
        raise PeerGone(str(error)) from None
    if not size:
        raise PeerGone("end of file")
    descriptor = _descriptor(ancillary) if ancillary else -1
    try:
        if size == 1 and _buffer[0:1] == _BY_DESCRIPTOR:
            return marshal.loads(_drain(descriptor)), -1  # noqa: S302  # the same user's own processes
        return marshal.loads(_view[:size]), descriptor  # noqa: S302  # as above
    except (ValueError, EOFError, TypeError, OSError, MemoryError) as error:
        raise PeerGone(f"not a value: {error}") from None  # a task has written to a descriptor that is not its own


def _descriptor(ancillary: list[Any]) -> int:
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            return int.from_bytes(data[:_FD_BYTES], sys.byteorder)
    return -1


def _drain(descriptor: int) -> bytes:
    """Return the content of the memfd `descriptor`, which is closed."""
    try:
        size, parts, at = os.fstat(descriptor).st_size, [], 0
        while at < size:
            parts.append(os.pread(descriptor, size - at, at))
            at += len(parts[-1])
            if not parts[-1]:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)
