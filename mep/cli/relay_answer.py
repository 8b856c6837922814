"""The messages to root of the child that talks to the relay: records of one fixed size, which need no parsing.

The child (mep/cli/relay_request.py) reads the relay's HTTP and JSON, so a compromised child may send anything here.
Each field therefore has a fixed position and length, text is printable ASCII, and anything else is refused. Besides the
id and the two keys, root needs the link's host and port. They are configuration and no secret: the link proves its key.
Earlier keys are included with their signatures, because root itself verifies them. Text is only shown to the
administrator.
"""

from __future__ import annotations

import enum
import struct
import uuid
from dataclasses import dataclass

from mep_wire.relay_keys import MAX_EARLIER, EarlierKeys, RelayKeys

_MAX_HOST, _MAX_TEXT = 253, 700
_FIXED = struct.Struct(f"!BB16s32s32s{_MAX_HOST}sHB")
_EARLIER = struct.Struct("!32s32s64s")
RECORD_BYTES = _FIXED.size + MAX_EARLIER * _EARLIER.size + _MAX_TEXT
MAX_NOTES = 32
"""Most notes before the one record that ends the exchange."""
_NO_KEYS = RelayKeys(bytes(32), bytes(32))
_HOST_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]%")


class AnswerKind(enum.IntEnum):
    """The kind of a record. All but NOTE are the last one."""

    NOTE = 1
    """Show `text` to the administrator."""
    REGISTERED = 2
    DONE = 3
    """The request succeeded, without further data."""
    REFUSED = 4
    """The relay answered with an error: `text`, and `code` if root acts on it."""
    UNREACHABLE = 5
    MALFORMED = 6
    """The relay's answer doesn't follow its API."""


class AnswerCode(enum.IntEnum):
    """The relay's errors that root acts on."""

    OTHER = 0
    ENDPOINT_NOT_FOUND = 1
    ID_CONFLICT = 2


class RecordInvalid(Exception):
    """A record breaks the format: the child is not, or no longer, our own code."""


@dataclass(frozen=True, slots=True)
class RelayAnswer:
    """One record."""

    kind: AnswerKind
    text: str = ""
    code: AnswerCode = AnswerCode.OTHER
    endpoint_id: str = str(uuid.UUID(int=0))
    keys: RelayKeys = _NO_KEYS
    link_host: str = ""
    link_port: int = 0
    earlier: tuple[EarlierKeys, ...] = ()
    """Oldest first."""


def encode(answer: RelayAnswer) -> bytes:
    """Return the record. Text is escaped and cut to fit. Raises ValueError for an impossible host."""
    host = answer.link_host.encode("ascii")
    if len(host) > _MAX_HOST or not _HOST_CHARACTERS.issuperset(host):
        raise ValueError(f"{answer.link_host!r} is no host")
    earlier = answer.earlier[-MAX_EARLIER:]
    chain = b"".join(_EARLIER.pack(one.keys.signing, one.keys.link, one.signature) for one in earlier)
    fixed = _FIXED.pack(
        answer.kind, answer.code, uuid.UUID(answer.endpoint_id).bytes, answer.keys.signing, answer.keys.link,
        host, answer.link_port, len(earlier),
    )  # fmt: skip
    text = _plain(answer.text)[:_MAX_TEXT].ljust(_MAX_TEXT, b"\0")
    return fixed + chain.ljust(MAX_EARLIER * _EARLIER.size, b"\0") + text


def decode(record: bytes) -> RelayAnswer:
    """Return the decoded record. Raises RecordInvalid."""
    if len(record) != RECORD_BYTES:
        raise RecordInvalid(f"{len(record)} bytes" if record else "it ended without an answer")
    kind, code, endpoint_id, signing, link, host, port, count = _FIXED.unpack_from(record)
    host, text = host.rstrip(b"\0"), record[-_MAX_TEXT:].rstrip(b"\0")
    if count > MAX_EARLIER or not _HOST_CHARACTERS.issuperset(host) or not all(32 <= byte < 127 for byte in text):
        raise RecordInvalid("a field that is out of bounds")
    pieces = [_EARLIER.unpack_from(record, _FIXED.size + index * _EARLIER.size) for index in range(count)]
    try:
        return RelayAnswer(
            kind=AnswerKind(kind),
            code=AnswerCode(code),
            endpoint_id=str(uuid.UUID(bytes=endpoint_id)),
            keys=RelayKeys(signing, link),
            link_host=host.decode("ascii"),
            link_port=port,
            earlier=tuple(EarlierKeys(RelayKeys(one, other), signature) for one, other, signature in pieces),
            text=text.decode("ascii"),
        )
    except ValueError:
        raise RecordInvalid("a kind or a code that there is not") from None


def _plain(text: str) -> bytes:
    """Return text in printable ASCII, all else escaped."""
    return b"".join(c.encode() if " " <= c <= "~" else c.encode("unicode_escape", "backslashreplace") for c in text)
