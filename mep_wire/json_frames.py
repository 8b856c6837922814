"""Arguments and results that travel as JSON, in the SDK's frame: for callers that have no Python objects.

The frame is `MEP`, a byte for its kind, four bytes of CRC-32 over the rest, and the rest. `mep_sdk.encoding` reads and
writes all kinds; a test holds the two against each other. Called by the relay's action provider.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

MAGIC = b"MEP"
JSON = b"j"
REQUEST = b"r"
_HEADER_BYTES = 8
_WAYS = b"json"


def _frame(kind: bytes, body: bytes) -> bytes:
    return MAGIC + kind + zlib.crc32(body).to_bytes(4, "big") + body


def json_arguments(args: list[Any], kwargs: dict[str, Any]) -> bytes:
    """Return the arguments of one call, with the wish for a result in JSON."""
    inner = _frame(JSON, msgspec.json.encode([args, kwargs]))
    return _frame(REQUEST, bytes([len(_WAYS)]) + _WAYS + inner)


def json_result(data: bytes) -> Any:
    """Return the value of a result in JSON. Raises ValueError where it is not one."""
    if data[:4] != MAGIC + JSON or len(data) < _HEADER_BYTES:
        raise ValueError("not in JSON")
    body = data[_HEADER_BYTES:]
    if zlib.crc32(body) != int.from_bytes(data[4:8], "big"):
        raise ValueError("damaged")
    return msgspec.json.decode(body)
