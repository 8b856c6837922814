"""The relay's two public keys as an endpoint pins them: their fingerprint, and how a new pair is signed with the old.

Formats only: the relay signs (Ed25519), `mep register` verifies.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_EARLIER = 8
"""Most earlier pairs that a relay presents, and that an endpoint looks at."""
_FINGERPRINT_CONTEXT = b"mep relay keys v1\x00"
_ROTATION_CONTEXT = b"mep relay key rotation v1\x00"
"""Prefixed before hashing and signing, so that no other signed thing can be taken for a rotation."""


@dataclass(frozen=True, slots=True)
class RelayKeys:
    """A relay's public keys, 32 bytes each. Raises ValueError for other lengths."""

    signing: bytes
    """Ed25519: start requests are signed with its secret."""
    link: bytes
    """CURVE: the endpoint link's server key."""

    def __post_init__(self) -> None:
        if len(self.signing) != KEY_BYTES or len(self.link) != KEY_BYTES:
            raise ValueError(f"a key that is not {KEY_BYTES} bytes")

    @property
    def fingerprint(self) -> str:
        """One fingerprint for both keys, written as ssh does: SHA256, then base64 without padding."""
        digest = hashlib.sha256(_FINGERPRINT_CONTEXT + self.signing + self.link).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class EarlierKeys:
    """A pair that the relay had before, and its signature over the pair that followed it."""

    keys: RelayKeys
    signature: bytes


def rotation_statement(old: RelayKeys, new: RelayKeys) -> bytes:
    """Return the bytes that the signing key of `old` signs to certify `new` as its successor."""
    return _ROTATION_CONTEXT + old.signing + old.link + new.signing + new.link
