"""A relay's side of a start request: signs and seals as a relay does, and lets a test change any field."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from mep_wire.identity import Identity, IdentitySet
from mep_wire.ids import user_endpoint_id
from mep_wire.start_request import SEAL_CONTEXT, SIGNATURE_CONTEXT, StartRequest, encode_start

ENDPOINT = "8d3a3c0e-5b1e-4b5f-9d0a-111111111111"
EPOCH = bytes(range(16))
NOW = 1_800_000_000.0
SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def alice(**changes: str) -> Identity:
    fields = {"id": "0b2bb5a8-6a5f-4b3c-8f5b-aaaaaaaaaaaa", "username": "alice@example.edu", **changes}
    return Identity(**fields)


@dataclass
class RelaySide:
    """Signs and seals as the relay does, and lets a test change any field."""

    signing_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    unseal_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    epoch: bytes = EPOCH
    now: float = NOW
    token: bytes = bytes(32)

    @property
    def public_key(self) -> bytes:
        return self.signing_key.public_key().public_bytes_raw()

    def request(self, **changes: Any) -> StartRequest:
        who = changes.get("identity_set", IdentitySet("account-1", (alice(),)))
        config, runtime = changes.get("user_endpoint_config", {"x": 1}), changes.get("user_runtime", {"python": "3.11"})
        endpoint = changes.get("endpoint_id", ENDPOINT)
        uep_id = changes.get("uep_id") or user_endpoint_id(endpoint, who.account_id, config, runtime)
        sealed = SUITE.encrypt(self.token, self.unseal_key.public_key(), SEAL_CONTEXT + uep_id.encode())
        fields: dict[str, Any] = {
            "endpoint_id": endpoint,
            "uep_id": uep_id,
            "identity_set": who,
            "user_endpoint_config": config,
            "user_runtime": runtime,
            "issued_at": self.now,
            "expires_at": self.now + 60,
            "nonce": os.urandom(16),
            "epoch": self.epoch,
            "sealed_join_token": sealed,
            "correlation_id": "correlation-1",
        }
        return StartRequest(**{**fields, **changes})

    def sign(self, data: bytes) -> bytes:
        return msgspec.msgpack.encode([data, self.signing_key.sign(SIGNATURE_CONTEXT + data)])

    def document(self, **changes: Any) -> bytes:
        return self.sign(encode_start(self.request(**changes)))
