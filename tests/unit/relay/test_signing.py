"""Start requests: the signed bytes are the bytes sent, and only the mapper can open the token."""

from __future__ import annotations

import os

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from mep.boundary.resolved_config import Caps
from mep_wire.identity import Identity, IdentitySet
from mep_wire.limits import START_REQUEST_LIFETIME_S
from mep_wire.start_request import SEAL_CONTEXT, SIGNATURE_CONTEXT, decode_start
from relay.dispatch.start_signing import join_hash, make_recheck, make_start
from relay.store.records import UepRecord
from user_endpoint.lifecycle.setup_commands import SETUP_SHARE

KEY, UNSEAL = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
PEOPLE = IdentitySet("account", (Identity(id="i", username="alice@example.edu"),))
UEP = UepRecord(
    row=1, uep_id="u-1", endpoint_id="e-1", account_id="account", identity_id="i", config={"A": 1}, runtime={}
)
SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
EPOCH = b"e" * 16


def test_the_signature_covers_the_bytes_with_their_context() -> None:
    made = make_start(KEY, UEP, PEOPLE, UNSEAL.public_key().public_bytes_raw(), EPOCH, 1000.0)
    KEY.public_key().verify(made.message.signature, SIGNATURE_CONTEXT + made.message.request)
    with pytest.raises(InvalidSignature):
        KEY.public_key().verify(made.message.signature, made.message.request)
    request = decode_start(made.message.request)
    assert (request.endpoint_id, request.uep_id, request.identity_set) == ("e-1", "u-1", PEOPLE)
    assert (request.issued_at, request.expires_at, request.epoch) == (1000.0, 1060.0, EPOCH)
    assert made.correlation_id == request.correlation_id


def test_the_token_outlives_the_slowest_start() -> None:
    """A request may be acted upon in its last second, and endpoint_setup may take its time after that."""
    made = make_start(KEY, UEP, PEOPLE, UNSEAL.public_key().public_bytes_raw(), EPOCH, 1000.0)
    slowest_s = START_REQUEST_LIFETIME_S + Caps().start_timeout_s
    assert SETUP_SHARE < 1
    assert made.join_expires_at > 1000.0 + slowest_s


def test_the_token_opens_for_its_user_endpoint_alone_and_is_kept_as_a_hash() -> None:
    made = make_start(KEY, UEP, PEOPLE, UNSEAL.public_key().public_bytes_raw(), EPOCH, 1000.0)
    sealed = decode_start(made.message.request).sealed_join_token
    token = SUITE.decrypt(sealed, UNSEAL, SEAL_CONTEXT + b"u-1")
    assert join_hash(token) == made.join_hash
    assert token not in made.message.request
    with pytest.raises(InvalidTag):
        SUITE.decrypt(sealed, UNSEAL, SEAL_CONTEXT + b"u-2")


def test_no_two_are_alike() -> None:
    one, other = (
        decode_start(make_start(KEY, UEP, PEOPLE, UNSEAL.public_key().public_bytes_raw(), EPOCH, 1.0).message.request)
        for _ in range(2)
    )
    assert one.nonce != other.nonce
    assert one.sealed_join_token != other.sealed_join_token


def test_a_gateways_end_user_is_signed_for_endpoints_that_know_of_them() -> None:
    uep = msgspec.structs.replace(UEP, runtime={"end_user": "ada@example.edu"})
    unseal = UNSEAL.public_key().public_bytes_raw()
    for known, expected in ((True, "ada@example.edu"), (False, "")):
        start = decode_start(make_start(KEY, uep, PEOPLE, unseal, EPOCH, 1.0, end_users=known).message.request)
        recheck = decode_start(make_recheck(KEY, uep, PEOPLE, EPOCH, 1.0, end_users=known).request)
        assert (start.end_user, recheck.end_user) == (expected, expected)
    nobody = make_start(KEY, UEP, PEOPLE, unseal, EPOCH, 1.0, end_users=True).message.request
    assert b"end_user" not in nobody  # an older mapper refuses fields that it does not know


def test_what_cannot_be_made_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="32"):
        make_start(KEY, UEP, PEOPLE, b"short", EPOCH, 1.0)
    many = IdentitySet("a", tuple(Identity(id=os.urandom(2000).hex(), username="x") for _ in range(100)))
    with pytest.raises(ValueError, match="bytes"):
        make_start(KEY, UEP, many, UNSEAL.public_key().public_bytes_raw(), EPOCH, 1.0)
