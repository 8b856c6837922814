"""Whether a start request is genuine, fresh and for this endpoint. Pure: time and epoch are arguments.

Trusts only the relay's pinned Ed25519 key: the document comes from the manager, which may be hostile. Called by
mep/mapper/mapper.py for each request. Every refusal is StartRequestRefused (the request is invalid) or
StartRequestStale (the relay may sign it again).
"""

from __future__ import annotations

import contextlib
import hmac
import time
import uuid
from collections.abc import Callable

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mep_wire.errors import StartRequestRefused, StartRequestStale
from mep_wire.ids import user_endpoint_id
from mep_wire.limits import MAX_IDENTITIES, MAX_START_REQUEST_BYTES
from mep_wire.start_request import (
    INCARNATION_BYTES,
    MAX_SIGNATURES,
    NONCE_BYTES,
    SIGNATURE_BYTES,
    SIGNATURE_CONTEXT,
    StartRequest,
    decode_start,
)

MAX_DOCUMENT_BYTES = MAX_START_REQUEST_BYTES + MAX_SIGNATURES * SIGNATURE_BYTES + 32
MAX_NONCES = 200_000
"""How many requests one epoch may have: each costs about a hundred bytes of memory."""

_document = msgspec.msgpack.Decoder(tuple[bytes, bytes])


class EpochSpent(Exception):
    """The epoch has seen MAX_NONCES requests: the mapper must restart with another."""


class Verifier:
    """Verifies start requests for one endpoint and one epoch, and remembers their nonces."""

    def __init__(
        self,
        *,
        endpoint_id: str,
        signing_key: bytes,
        epoch: bytes,
        clock_skew_s: float,
        clock: Callable[[], float] = time.time,
        max_nonces: int = MAX_NONCES,
    ) -> None:
        self._endpoint_id = endpoint_id
        self._key = Ed25519PublicKey.from_public_bytes(signing_key)
        self._epoch = epoch
        self._skew = clock_skew_s
        self._clock = clock
        self._nonces: set[bytes] = set()
        self._max_nonces = max_nonces

    def verify(self, document: bytes) -> tuple[bytes, StartRequest]:
        """Return the signed bytes in `document` and the request in them.

        Raises StartRequestRefused, StartRequestStale, or EpochSpent.
        """
        data = self._signed_bytes(document)
        request = _decode(data)
        self._check_target(request)
        self._check_fresh(request)
        self._check_user_endpoint(request)
        self._spend_nonce(request)
        return data, request

    def _signed_bytes(self, document: bytes) -> bytes:
        try:
            data, signature = _document.decode(document)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StartRequestRefused(reason="it is malformed", detail=f"the document: {error}") from None
        if len(data) > MAX_START_REQUEST_BYTES:
            raise StartRequestRefused(reason="it is too large", detail=f"{len(data)} bytes")
        if not self._is_signed(data, signature):
            raise StartRequestRefused(
                reason="its signature is not the relay's",
                detail="signed with a key that is not the pinned one, or altered between the relay and here; if the "
                "relay has changed its keys: mep register NAME --again",
            )
        return data

    def _is_signed(self, data: bytes, signatures: bytes) -> bool:
        """Tell whether one of `signatures`, which follow each other, is the pinned key's."""
        if len(signatures) > MAX_SIGNATURES * SIGNATURE_BYTES:
            return False
        for start in range(0, len(signatures), SIGNATURE_BYTES):
            with contextlib.suppress(InvalidSignature):
                self._key.verify(signatures[start : start + SIGNATURE_BYTES], SIGNATURE_CONTEXT + data)
                return True
        return False

    def _check_target(self, request: StartRequest) -> None:
        if request.endpoint_id != self._endpoint_id:
            raise StartRequestRefused(
                reason="it is for another endpoint",
                detail=f"for endpoint {request.endpoint_id}, this one is {self._endpoint_id}",
                correlation_id=request.correlation_id,
            )

    def _check_fresh(self, request: StartRequest) -> None:
        if not hmac.compare_digest(request.epoch, self._epoch):
            raise StartRequestStale(
                reason="it was signed before this endpoint's last start",
                detail=f"epoch {request.epoch.hex()[:32]}, now {self._epoch.hex()}",
                correlation_id=request.correlation_id,
            )
        now = self._clock()
        # Written so that a NaN from the wire is refused as well.
        if not now <= request.expires_at + self._skew:
            raise self._stale("it has expired", request, now)
        if not request.issued_at - self._skew <= now:
            raise self._stale("it was signed in the future", request, now)

    def _stale(self, reason: str, request: StartRequest, now: float) -> StartRequestStale:
        return StartRequestStale(
            reason=reason,
            detail=f"by the relay's clock signed {_utc(request.issued_at)}, valid until {_utc(request.expires_at)}; "
            f"this host's clock says {_utc(now)}; {self._skew:g} s of difference are allowed",
            correlation_id=request.correlation_id,
        )

    def _check_user_endpoint(self, request: StartRequest) -> None:
        who, least = request.identity_set, 0 if request.recheck else 1
        if not least <= len(who.identities) <= MAX_IDENTITIES:
            raise StartRequestRefused(
                reason=f"it names {len(who.identities)} identities, and {least} to {MAX_IDENTITIES} are allowed",
                correlation_id=request.correlation_id,
            )
        if request.recheck:
            # The id may be of another account than the person maps to now. That's fine: a re-check starts nothing.
            if not _is_uuid(request.uep_id):
                raise StartRequestRefused(
                    reason="its user endpoint id is not a UUID", correlation_id=request.correlation_id
                )
            if len(request.incarnation) not in {0, INCARNATION_BYTES}:
                reason = "its incarnation has a wrong length"
                raise StartRequestRefused(reason=reason, correlation_id=request.correlation_id)
            return
        expected = _user_endpoint_id(request)
        if request.uep_id != expected:
            raise StartRequestRefused(
                reason="its user endpoint id does not belong to it",
                detail=f"{request.uep_id}, computed {expected}",
                correlation_id=request.correlation_id,
            )

    def _spend_nonce(self, request: StartRequest) -> None:
        if len(request.nonce) != NONCE_BYTES:
            raise StartRequestRefused(reason="its nonce has a wrong length", correlation_id=request.correlation_id)
        if request.nonce in self._nonces:
            raise StartRequestStale(
                reason="it was used before", detail="replayed", correlation_id=request.correlation_id
            )
        if len(self._nonces) >= self._max_nonces:
            raise EpochSpent
        self._nonces.add(request.nonce)


def _decode(data: bytes) -> StartRequest:
    try:
        return decode_start(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StartRequestRefused(reason="it is malformed", detail=str(error)) from None


def _user_endpoint_id(request: StartRequest) -> str:
    who, config, runtime = request.identity_set, request.user_endpoint_config, request.user_runtime
    try:
        return user_endpoint_id(request.endpoint_id, who.account_id, config, runtime)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        # MessagePack has values that JSON lacks, and the id is computed from JSON.
        raise StartRequestRefused(
            reason="its configuration has a value that JSON lacks",
            detail=str(error),
            correlation_id=request.correlation_id,
        ) from None


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _utc(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return repr(seconds)
