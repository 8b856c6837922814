"""The start request: the relay signs it, the mapper verifies it, and the user endpoint acts on it.

The signature covers the exact bytes of the encoded request. Those bytes are never re-encoded on the
way: the mapper verifies them and hands them on inside `VerifiedStart`. Signing itself (Ed25519) and
sealing (HPKE, RFC 9180) are done by the relay and the mapper; only the formats are declared here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mep_wire.identity import IdentitySet
from mep_wire.struct_info import build_struct_info

SIGNATURE_CONTEXT = b"mep start request v1\x00"
"""Prefixed to the request's bytes before signing, so that no other signed thing can be taken for one."""
SEAL_CONTEXT = b"mep join token v1\x00"
"""HPKE `info`: prefix, followed by the user endpoint id in ASCII. Suite: DHKEM(X25519, HKDF-SHA256),
HKDF-SHA256, ChaCha20Poly1305; the sealed text is enc || ciphertext as `cryptography` writes it."""
END_USER = "end_user"
"""The key of `user_runtime` by which templates see a gateway's person."""
EPOCH_BYTES = 16
NONCE_BYTES = 16
JOIN_TOKEN_BYTES = 32
INCARNATION_CONTEXT = b"mep incarnation v1\x00"
INCARNATION_BYTES = 16
SIGNATURE_BYTES = 64
MAX_SIGNATURES = 4
"""A start request may carry several Ed25519 signatures, one after the other: while a relay changes its signing key it
signs with the earlier one too, which endpoints have pinned until they register again."""


class StartRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A relay's order to start (or show to be running) one user endpoint for one person.

    Times are seconds since the epoch by the relay's clock. `epoch` is the value that the endpoint's
    mapper drew at its start: a request for another epoch is refused.
    """

    endpoint_id: str
    uep_id: str
    identity_set: IdentitySet
    user_endpoint_config: dict[str, Any]
    user_runtime: dict[str, Any]
    issued_at: float
    expires_at: float
    nonce: bytes
    epoch: bytes
    sealed_join_token: bytes
    correlation_id: str
    recheck: bool = False
    """Starts nothing: it gives the current identities of a running user endpoint's owner. Configuration, runtime and
    join token are empty. So is the identity set if the relay no longer knows the owner."""
    end_user: str = ""
    """The person of a science gateway that its community account acts for, as the gateway names them. Only mappings
    that ask for it see it. Sent to endpoints that know it (ManagerHello.end_users)."""
    incarnation: bytes = b""
    """Of a re-check: which process it is about, as the manager has asked. Empty where an older manager does not say."""


class VerifiedStart(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of the sealed memfd that the mapper writes and the user endpoint reads: the exact bytes
    that the relay signed, the opened join token, and the identity that decided the mapping."""

    request: bytes
    join_token: bytes
    local_user: str
    mapped_identity: dict[str, Any]
    """`{"local": {"uname": ...}, "globus": {"id": ..., "username": ..., ...}}`, for templates. The keeper adds the rest
    of `local` from NSS."""


build_struct_info(__name__)

_start_decoder = msgspec.msgpack.Decoder(StartRequest)
decode_verified_start = msgspec.msgpack.Decoder(VerifiedStart).decode


def incarnation_of(join_token: bytes) -> bytes:
    """Return the incarnation of the one process that may spend `join_token`: its name among all processes of its
    user endpoint. Relay and mapper each compute it, so that it need not travel in the request."""
    import hashlib  # the user endpoint needs none, and OpenSSL costs its processes half a megabyte

    return hashlib.sha256(INCARNATION_CONTEXT + join_token).digest()[:INCARNATION_BYTES]


def same_process(one: bytes, other: bytes) -> bool:
    """Tell whether two incarnations may name the same process. An empty one is unknown, and may name any: endpoints,
    relays and records of an older version have none."""
    return not one or not other or one == other


def encode_start(request: StartRequest) -> bytes:
    """Return the bytes that are signed."""
    return msgspec.msgpack.encode(request)


def decode_start(data: bytes) -> StartRequest:
    """Return the request in `data`. Raises msgspec.DecodeError or msgspec.ValidationError."""
    return _start_decoder.decode(data)
