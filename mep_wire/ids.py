"""Identifiers: time-ordered task ids, and the stable id of a user endpoint."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

_UEP_NAMESPACE = uuid.UUID("5d0c3f0e-2a53-5a0c-9d52-6f3a3a4f7a11")


def uuid7(unix_ms: int | None = None, entropy: bytes | None = None) -> uuid.UUID:
    """Return a version 7 UUID (RFC 9562, section 5.7).

    Time-ordered ids keep the relay's task index append-only, which random ids do not.
    `unix_ms` is milliseconds since the epoch; `entropy` is at least 10 random bytes.
    """
    stamp = time.time_ns() // 1_000_000 if unix_ms is None else unix_ms
    rand = int.from_bytes((os.urandom(10) if entropy is None else entropy)[:10], "big")
    value = (stamp & 0xFFFF_FFFF_FFFF) << 80 | rand
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)


def canonical_json(value: Any) -> bytes:
    """Return one JSON encoding of `value`, with sorted keys, so that equal values have equal bytes."""
    return msgspec.json.encode(value, order="deterministic")


def user_endpoint_id(
    endpoint_id: str,
    account_id: str,
    user_endpoint_config: Mapping[str, Any],
    runtime: Mapping[str, Any],
) -> str:
    """Return the stable id of the user endpoint that serves these four values.

    Same values, same process; any change, a new one. `account_id` is the relay's id of the person
    (one for a whole identity set), so linking another identity does not start a second process.
    """
    import hashlib  # the relay alone asks, and OpenSSL costs the others half a megabyte

    name = canonical_json([endpoint_id, account_id, user_endpoint_config, runtime])
    # uuid.uuid5 of it, which costs each submission three times as much
    value = int.from_bytes(hashlib.sha1(_UEP_NAMESPACE.bytes + name, usedforsecurity=False).digest()[:16], "big")
    value = value & ~(0xF << 76) | 0x5 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid_text(value.to_bytes(16, "big"))


def uuid_text(raw: bytes) -> str:
    """Return the text of a UUID's 16 bytes (about four times as fast as uuid.UUID)."""
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
