"""Makes signed start requests: a fresh join token sealed to the mapper's key, signed with the relay's.

The formats are those of mep_wire.start_request. Pure: time and randomness come from arguments or the caller.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from mep_wire.identity import IdentitySet
from mep_wire.limits import JOIN_LIFETIME_S, MAX_START_REQUEST_BYTES, START_REQUEST_LIFETIME_S
from mep_wire.messages import SignedStart
from mep_wire.start_request import (
    END_USER,
    JOIN_TOKEN_BYTES,
    MAX_SIGNATURES,
    NONCE_BYTES,
    SEAL_CONTEXT,
    SIGNATURE_CONTEXT,
    StartRequest,
    encode_start,
    incarnation_of,
)
from relay.store.records import UepRecord

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class Signer(Protocol):
    """Signs start requests: one key, or several."""

    def sign(self, data: bytes, /) -> bytes:
        """Return the signature, or several of 64 bytes one after the other."""


class OverlapSigner:
    """Signs with the relay's key, and until their time is up with those before it, which endpoints may have pinned."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        earlier: Sequence[tuple[Ed25519PrivateKey, float]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`earlier`: keys, newest first, each with the time (seconds since the epoch) until which it signs too."""
        self._key, self._earlier, self._clock = key, list(earlier), clock

    def sign(self, data: bytes, /) -> bytes:
        """Return the signatures of the keys that count now, the present one's first."""
        now = self._clock()
        also = [key for key, until in self._earlier if now < until][: MAX_SIGNATURES - 1]
        return b"".join(key.sign(data) for key in [self._key, *also])


@dataclass(frozen=True, slots=True)
class MadeStart:
    """A signed start with the data that the relay keeps on it."""

    message: SignedStart
    join_hash: bytes
    join_expires_at: float
    correlation_id: str
    incarnation: bytes
    """Of the process that this may lead to."""


def join_hash(token: bytes) -> bytes:
    """Return the stored form of a join token."""
    return hashlib.sha256(token).digest()


def _end_user(uep: UepRecord) -> str:
    """Return the gateway's person that this user endpoint serves. The API alone writes this key, where the endpoint's
    administrators want it (`pass_end_users`); it refuses the key in what a person sends."""
    return str(uep.runtime.get(END_USER, ""))


def make_start(
    key: Signer, uep: UepRecord, identities: IdentitySet, unseal_key: bytes, epoch: bytes, now: float, *,
    end_users: bool = False,
) -> MadeStart:  # fmt: skip
    """Return a start request for `uep`, signed for `epoch`. Raises ValueError for a bad key or a request too large.

    It names the account that the user endpoint's id was made of, by which the endpoint checks that id: `identities`
    may be those of another, which that account was merged into. `end_users`: the endpoint knows the field.
    """
    token = os.urandom(JOIN_TOKEN_BYTES)
    sealed = _SUITE.encrypt(token, X25519PublicKey.from_public_bytes(unseal_key), SEAL_CONTEXT + uep.uep_id.encode())
    request = StartRequest(
        endpoint_id=uep.endpoint_id,
        uep_id=uep.uep_id,
        identity_set=IdentitySet(uep.made_of or uep.account_id, identities.identities),
        user_endpoint_config=uep.config,
        user_runtime=uep.runtime,
        issued_at=now,
        expires_at=now + START_REQUEST_LIFETIME_S,
        nonce=os.urandom(NONCE_BYTES),
        epoch=epoch,
        sealed_join_token=sealed,
        correlation_id=str(uuid.uuid4()),
        end_user=_end_user(uep) if end_users else "",
    )
    incarnation = incarnation_of(token)
    signed = _signed(key, request, incarnation)
    return MadeStart(signed, join_hash(token), now + JOIN_LIFETIME_S, request.correlation_id, incarnation)


def make_recheck(
    key: Signer, uep: UepRecord, identities: IdentitySet, epoch: bytes, now: float, incarnation: bytes = b"", *,
    end_users: bool = False,
) -> SignedStart:  # fmt: skip
    """Return who the person of `uep` is now, signed for `epoch`, as a re-check of the process of `incarnation`.

    Raises ValueError where that is too large.
    """
    request = StartRequest(
        endpoint_id=uep.endpoint_id,
        uep_id=uep.uep_id,
        identity_set=identities,
        user_endpoint_config={},
        user_runtime={},
        issued_at=now,
        expires_at=now + START_REQUEST_LIFETIME_S,
        nonce=os.urandom(NONCE_BYTES),
        epoch=epoch,
        sealed_join_token=b"",
        correlation_id=str(uuid.uuid4()),
        recheck=True,
        end_user=_end_user(uep) if end_users else "",
        incarnation=incarnation,
    )
    return _signed(key, request, incarnation)


def _signed(key: Signer, request: StartRequest, incarnation: bytes) -> SignedStart:
    data = encode_start(request)
    if len(data) > MAX_START_REQUEST_BYTES:
        raise ValueError(f"the start request has {len(data)} bytes, more than {MAX_START_REQUEST_BYTES}")
    signature = key.sign(SIGNATURE_CONTEXT + data)
    return SignedStart(
        uep_id=request.uep_id, request=data, signature=signature, recheck=request.recheck, incarnation=incarnation
    )
