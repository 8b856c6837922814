"""The channel of the privilege boundary: whole messages over a SOCK_SEQPACKET socketpair.

Trusts nothing that it reads. A frame must be exactly one declared message, within its caps, of the declared forms and
with the declared number of descriptors. Any other frame raises BoundaryViolation, and the caller ends the peer. If the
kernel could not deliver a descriptor because this process has no number free, DescriptorsLost is raised instead. The
caps are also checked on send, so that our own errors show at their origin. Called by monitor, keeper, manager and
mapper.
"""

from __future__ import annotations

import array
import dataclasses
import os
import re
import socket
from collections.abc import Callable, Iterable, Sequence

from mep.boundary.errors import BoundaryViolation
from mep.boundary.messages import DESCRIPTORS, MAX_FRAME_BYTES, WIRE_TYPES, Message

_NUMBERS = {cls: number for number, cls in WIRE_TYPES.items()}
_INT_BYTES = 8
_LENGTH_BYTES = 2
_MAX_DESCRIPTORS = 253  # SCM_MAX_FD: a surplus is received, not truncated, because the kernel would close it here


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """A field of a message and its bounds."""

    name: str
    kind: str  # "int", "str" or "bytes", as annotated
    cap: int = 0
    least: int = 0
    form: str = ""


_FIELDS: dict[type[Message], tuple[_Field, ...]] = {
    cls: tuple(_Field(f.name, str(f.type), **f.metadata) for f in dataclasses.fields(cls)) for cls in _NUMBERS
}


def clip(value: str, cap: int) -> str:
    """Return `value` cut to at most `cap` bytes of UTF-8, without control characters that could forge a line."""
    flat = "".join(c if c.isprintable() else " " for c in value)
    return flat.encode("utf-8", "replace")[:cap].decode("utf-8", "ignore")


def encode(message: Message) -> bytes:
    """Return the frame for `message`. Raises ValueError if a field is over its cap."""
    parts = [bytes([_NUMBERS[type(message)]])]
    for spec in _FIELDS[type(message)]:
        value = getattr(message, spec.name)
        if spec.kind == "int":
            parts.append(int(value).to_bytes(_INT_BYTES, "big", signed=True))
            continue
        data = value.encode() if spec.kind == "str" else bytes(value)
        if len(data) > spec.cap:
            raise ValueError(f"{type(message).__name__}.{spec.name}: {len(data)} bytes, cap {spec.cap}")
        parts.append(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    frame = b"".join(parts)
    if len(frame) > MAX_FRAME_BYTES:
        raise ValueError(f"{type(message).__name__}: frame of {len(frame)} bytes, cap {MAX_FRAME_BYTES}")
    return frame


def decode(frame: bytes) -> Message:
    """Return the one message in `frame`. Raises BoundaryViolation for anything else."""
    cls = WIRE_TYPES.get(frame[0]) if frame else None
    if cls is None:
        raise BoundaryViolation(f"unknown message type {frame[:1].hex() or 'none'}")
    values: dict[str, object] = {}
    at = 1
    for spec in _FIELDS[cls]:
        value, at = _decode_field(cls.__name__, spec, frame, at)
        if spec.form and not re.fullmatch(spec.form, str(value)):
            raise BoundaryViolation(f"{cls.__name__}.{spec.name}: malformed")
        values[spec.name] = value
    if at != len(frame):
        raise BoundaryViolation(f"{cls.__name__}: {len(frame) - at} bytes too many")
    return cls(**values)  # type: ignore[arg-type]  # kinds were checked field by field


def _decode_field(message: str, spec: _Field, frame: bytes, at: int) -> tuple[object, int]:
    width = _INT_BYTES if spec.kind == "int" else _LENGTH_BYTES
    head = frame[at : at + width]
    if len(head) != width:
        raise BoundaryViolation(f"{message}.{spec.name}: truncated")
    at += width
    if spec.kind == "int":
        return int.from_bytes(head, "big", signed=True), at
    size = int.from_bytes(head, "big")
    data = frame[at : at + size]
    if not spec.least <= size <= spec.cap or len(data) != size:
        raise BoundaryViolation(f"{message}.{spec.name}: {size} bytes announced, {len(data)} there, cap {spec.cap}")
    if spec.kind == "bytes":
        return data, at + size
    try:
        value = data.decode()
    except UnicodeDecodeError:
        raise BoundaryViolation(f"{message}.{spec.name}: not UTF-8") from None
    if "\0" in value:
        raise BoundaryViolation(f"{message}.{spec.name}: NUL")
    return value, at + size


def close_descriptors(descriptors: Iterable[int]) -> None:
    """Close `descriptors`."""
    for descriptor in descriptors:
        os.close(descriptor)


class DescriptorsLost(Exception):
    """This process had too few free descriptors for those of `message`. Its sender has done nothing wrong."""

    def __init__(self, message: Message) -> None:
        self.message = message
        super().__init__(f"{type(message).__name__}: no descriptor is free here")


class Channel:
    """One end of a boundary socketpair. Non-blocking unless `blocking`. Never buffers a part of a message.

    `dispose` closes descriptors that a peer wasn't allowed to send. The monitor's version doesn't block.
    """

    def __init__(self, sock: socket.socket, *, blocking: bool = False) -> None:
        self._sock = sock
        self.dispose: Callable[[Iterable[int]], None] = close_descriptors
        sock.setblocking(blocking)

    @classmethod
    def pair(cls, *, blocking: bool = False) -> tuple[Channel, Channel]:
        """Return two connected ends, both close-on-exec."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours, blocking=blocking), cls(theirs, blocking=blocking)

    @classmethod
    def from_descriptor(cls, descriptor: int, *, blocking: bool = False) -> Channel:
        """Return the channel on an inherited descriptor, made close-on-exec."""
        os.set_inheritable(descriptor, False)
        return cls(socket.socket(fileno=descriptor), blocking=blocking)

    def fileno(self) -> int:
        """The socket's descriptor, for polling."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close this end and all descriptors not yet received. The peer reads end-of-file."""
        if (descriptor := self._sock.detach()) >= 0:
            self.dispose([descriptor])

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send one message whole. Raises BlockingIOError if the peer doesn't read, OSError if it is gone."""
        if len(descriptors) != DESCRIPTORS.get(type(message), 0):
            raise ValueError(f"{type(message).__name__}: {len(descriptors)} descriptors")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._sock.sendmsg([encode(message)], rights)

    def receive(self) -> tuple[Message, list[int]] | None:
        """Return the next message and its descriptors (now the caller's, close-on-exec), or None at end-of-file.

        Raises BlockingIOError if there is no message yet, DescriptorsLost, BoundaryViolation for anything not allowed.
        """
        room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
        frame, ancillary, flags, _ = self._sock.recvmsg(MAX_FRAME_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC)
        descriptors = _descriptors(ancillary)
        if not frame and not descriptors:
            return None
        try:
            if flags & socket.MSG_TRUNC or len(frame) > MAX_FRAME_BYTES:
                raise BoundaryViolation("oversized frame")
            message = decode(frame)
            expected = DESCRIPTORS.get(type(message), 0)
            # The buffer has room for as many as can be sent, so only a lack of numbers here cuts them short.
            if flags & socket.MSG_CTRUNC and len(descriptors) < expected:
                raise DescriptorsLost(message)
            if flags & socket.MSG_CTRUNC or len(descriptors) != expected:
                raise BoundaryViolation(f"{type(message).__name__}: {len(descriptors)} descriptors")
        except (BoundaryViolation, DescriptorsLost):
            self.dispose(descriptors)
            raise
        return message, descriptors


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()
