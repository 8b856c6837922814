"""Arguments and results by reference: a small frame that names the pieces of a large one by their SHA-256.

Such a frame stands where the serialized value would be, inside the same wrappers: the ways to send a result around
arguments, a task's output around a result. Its parts, one after the other, are the bytes of `loads` pickles. A part is
in the frame itself, or a piece of at most DATA_PIECE_BYTES that the relay keeps for the person.

The SDK and workers make and read these frames. A user endpoint reads which pieces a task needs, and writes where they
are. The relay reads none of it: digests come to it beside the payload.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from mep_wire.struct_info import build_struct_info

MAGIC = b"MEP"
DATA = b"d"
REQUEST = b"r"
OUTPUT = b"o"
MAY_BE_DATA = frozenset({DATA, REQUEST, OUTPUT})
"""The kinds of payload that can be by reference: a quick look at each before `is_data`."""
DIGEST_BYTES = 32
_HEADER_BYTES, _LENGTH_BYTES = 8, 4


class DataFrameInvalid(ValueError):
    """A frame of data by reference cannot be read."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Some bytes of the whole: `inline`, or those of the piece with this SHA-256."""

    size: int
    digest: bytes = b""
    inline: bytes = b""


class DataFrame(msgspec.Struct, frozen=True, array_like=True):
    """A serialized value in parts."""

    kind: bytes
    """As in the header of a frame with the whole: a plain pickle, or one with code."""
    tag: str
    """Which Python and cloudpickle made the code in it; empty without code."""
    loads: int
    """How many pickles there are, one after the other, with one memo."""
    parts: list[Part]
    directory: str = ""
    """Where the pieces are, as a user endpoint tells its workers: files that are called by their digests."""

    @property
    def size(self) -> int:
        """The bytes of the whole."""
        return sum(part.size for part in self.parts)

    @property
    def digests(self) -> list[bytes]:
        """The pieces that it is made of, each once."""
        return list(dict.fromkeys(part.digest for part in self.parts if part.digest))


build_struct_info(__name__)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DataFrame)


def encode_data(frame: DataFrame, tail: bytes = b"") -> bytes:
    """Return the bytes of a frame; `tail` follows within, and readers of the frame pass over it."""
    packed = _encoder.encode(frame)
    body = b"%b%b%b" % (len(packed).to_bytes(_LENGTH_BYTES, "big"), packed, tail)
    return b"%b%b%b%b" % (MAGIC, DATA, zlib.crc32(body).to_bytes(4, "big"), body)


def _start(payload: bytes) -> int:
    """Return where the frame within a payload's wrapper begins; 0 without one. Costs the same for any size."""
    kind = payload[3:4]
    if kind == REQUEST and len(payload) > _HEADER_BYTES:
        return _HEADER_BYTES + 1 + payload[_HEADER_BYTES]
    if kind == OUTPUT:
        middle = _HEADER_BYTES + _LENGTH_BYTES
        return (
            middle
            + _LENGTH_BYTES
            + int.from_bytes(payload[_HEADER_BYTES:middle], "big")
            + int.from_bytes(payload[middle : middle + _LENGTH_BYTES], "big")
        )
    return 0


def is_data(payload: bytes) -> bool:
    """Return whether a payload is by reference."""
    kind = payload[3:4]
    if kind == DATA:
        return True
    if kind not in (REQUEST, OUTPUT):
        return False
    start = _start(payload)
    return payload[start : start + 4] == MAGIC + DATA


def read_data(payload: bytes) -> DataFrame | None:
    """Return the frame of a payload that is by reference, None for any other. Raises DataFrameInvalid."""
    if not is_data(payload):
        return None
    body = memoryview(payload)[_start(payload) + _HEADER_BYTES :]
    end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "big")
    if zlib.crc32(body) != int.from_bytes(payload[_start(payload) + 4 : _start(payload) + _HEADER_BYTES], "big"):
        raise DataFrameInvalid("its checksum does not fit")
    try:
        found = _decoder.decode(body[_LENGTH_BYTES:end])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataFrameInvalid(str(error)) from error
    _check(found)
    return found


def _check(frame: DataFrame) -> None:
    for part in frame.parts:
        if len(part.digest) not in (0, DIGEST_BYTES) or part.size < 0:
            raise DataFrameInvalid("a part has no SHA-256")
        if not part.digest and part.size != len(part.inline):
            raise DataFrameInvalid("a part has another size than it says")


def with_directory(payload: bytes, frame: DataFrame, directory: str) -> bytes:
    """Return a payload of arguments by reference that says where its pieces are. `frame` is what `read_data` gave."""
    start = _start(payload)
    body = payload[start + _HEADER_BYTES :]
    tail = body[_LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "big") :]
    inner = encode_data(msgspec.structs.replace(frame, directory=directory), tail)
    if not start:
        return inner
    wrapped = payload[_HEADER_BYTES:start] + inner
    return b"%b%b%b" % (payload[:4], zlib.crc32(wrapped).to_bytes(4, "big"), wrapped)


def placed_in(directory: str, payload: bytes) -> bytes:
    """Return a payload that says where its pieces are; one that is not by reference as it is. Raises
    DataFrameInvalid."""
    frame = read_data(payload)
    return payload if frame is None else with_directory(payload, frame, directory)


def digests_of(payload: bytes) -> Sequence[bytes]:
    """Return the pieces that a payload needs, none where it is not by reference. Raises DataFrameInvalid."""
    frame = read_data(payload)
    return frame.digests if frame is not None else ()
