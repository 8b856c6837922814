"""A start request that is not the relay's, not fresh or not for here is refused by name, whatever its bytes are."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from mep.mapper.start_verifier import EpochSpent, Verifier
from mep_wire.errors import MepError, StartRequestRefused, StartRequestStale
from mep_wire.identity import IdentitySet
from mep_wire.start_request import SIGNATURE_CONTEXT, decode_start, encode_start
from tests.support.start_requests import ENDPOINT, EPOCH, NOW, RelaySide, alice


def verifier(relay: RelaySide, now: float = NOW, **changes: Any) -> Verifier:
    fields: dict[str, Any] = {
        "endpoint_id": ENDPOINT, "signing_key": relay.public_key, "epoch": EPOCH, "clock_skew_s": 30.0,
        "clock": lambda: now,
    }  # fmt: skip
    return Verifier(**{**fields, **changes})


def refused(relay: RelaySide, document: bytes, now: float = NOW) -> MepError:
    with pytest.raises(MepError) as caught:
        verifier(relay, now).verify(document)
    return caught.value


def test_a_genuine_request_gives_the_exact_signed_bytes(relay: RelaySide) -> None:
    request = relay.request()
    data, verified = verifier(relay).verify(relay.sign(encode_start(request)))
    assert data == encode_start(request)
    assert verified == request


def test_another_relays_signature(relay: RelaySide) -> None:
    foreign = RelaySide(unseal_key=relay.unseal_key)
    error = refused(relay, foreign.document())
    assert isinstance(error, StartRequestRefused)
    assert "signature" in error.text


def test_a_signature_without_the_context(relay: RelaySide) -> None:
    data = encode_start(relay.request())
    document = msgspec.msgpack.encode([data, relay.signing_key.sign(data)])
    assert isinstance(refused(relay, document), StartRequestRefused)


@pytest.mark.parametrize("length", [0, 1, 63, 65, 1000])
def test_a_signature_of_a_wrong_length(relay: RelaySide, length: int) -> None:
    document = msgspec.msgpack.encode([encode_start(relay.request()), bytes(length)])
    assert isinstance(refused(relay, document), StartRequestRefused)


@pytest.mark.parametrize("field", ["identity_set", "user_endpoint_config", "expires_at", "sealed_join_token", "epoch"])
def test_altered_on_the_way(relay: RelaySide, field: str) -> None:
    values = {
        "identity_set": IdentitySet("account-2", (alice(username="root@example.edu"),)),
        "user_endpoint_config": {"x": 2},
        "expires_at": NOW + 1e6,
        "sealed_join_token": b"x" * 80,
        "epoch": bytes(16),
    }
    genuine = relay.document()
    _, signature = msgspec.msgpack.decode(genuine)
    altered = msgspec.structs.replace(relay.request(), **{field: values[field]})
    assert isinstance(refused(relay, msgspec.msgpack.encode([encode_start(altered), signature])), StartRequestRefused)


def test_one_flipped_bit_anywhere(relay: RelaySide) -> None:
    data, signature = msgspec.msgpack.decode(relay.document())
    for index in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[index] ^= 1
        assert isinstance(refused(relay, msgspec.msgpack.encode([bytes(flipped), signature])), StartRequestRefused)


def test_for_another_endpoint(relay: RelaySide) -> None:
    error = refused(relay, relay.document(endpoint_id="8d3a3c0e-5b1e-4b5f-9d0a-222222222222"))
    assert isinstance(error, StartRequestRefused)
    assert "another endpoint" in error.text
    assert ENDPOINT in error.detail


def test_of_another_epoch(relay: RelaySide) -> None:
    error = refused(relay, relay.document(epoch=os.urandom(16)))
    assert isinstance(error, StartRequestStale)
    assert "last start" in error.text


def test_expired_names_both_clocks_for_the_administrator_alone(relay: RelaySide) -> None:
    error = refused(relay, relay.document(), now=NOW + 60 + 31)
    assert isinstance(error, StartRequestStale)
    assert "2027-01-15T08:00:00Z" in error.detail
    assert "2027-01-15T08:01:31Z" in error.detail
    assert "2027" not in error.text


def test_clock_skew_is_allowed_both_ways(relay: RelaySide) -> None:
    verifier(relay, NOW + 60 + 29).verify(relay.document())
    verifier(relay, NOW - 29).verify(relay.document())
    assert isinstance(refused(relay, relay.document(), now=NOW - 31), StartRequestStale)


@pytest.mark.parametrize("field", ["issued_at", "expires_at"])
def test_a_time_that_is_no_number(relay: RelaySide, field: str) -> None:
    assert isinstance(refused(relay, relay.document(**{field: float("nan")})), StartRequestStale)


def test_replayed(relay: RelaySide) -> None:
    document = relay.document()
    once = verifier(relay)
    once.verify(document)
    with pytest.raises(StartRequestStale, match="used before"):
        once.verify(document)


def test_a_refused_request_does_not_spend_its_nonce(relay: RelaySide) -> None:
    nonce = os.urandom(16)
    once = verifier(relay)
    with pytest.raises(StartRequestStale):
        once.verify(relay.document(nonce=nonce, epoch=bytes(16)))
    once.verify(relay.document(nonce=nonce))


def test_an_epoch_that_has_seen_enough_ends(relay: RelaySide) -> None:
    small = verifier(relay, max_nonces=2)
    small.verify(relay.document())
    small.verify(relay.document())
    with pytest.raises(EpochSpent):
        small.verify(relay.document())


@pytest.mark.parametrize("nonce", [b"", b"short", bytes(17)])
def test_a_nonce_of_a_wrong_length(relay: RelaySide, nonce: bytes) -> None:
    assert isinstance(refused(relay, relay.document(nonce=nonce)), StartRequestRefused)


def test_a_user_endpoint_id_of_something_else(relay: RelaySide) -> None:
    error = refused(relay, relay.document(uep_id="11111111-2222-3333-4444-555555555555"))
    assert isinstance(error, StartRequestRefused)
    assert "does not belong" in error.text


@pytest.mark.parametrize("count", [0, 65])
def test_too_many_identities_or_none(relay: RelaySide, count: int) -> None:
    people = tuple(alice(id=str(i)) for i in range(count))
    error = refused(relay, relay.document(identity_set=IdentitySet("account-1", people)))
    assert isinstance(error, StartRequestRefused)
    assert str(count) in error.text


def test_an_unknown_field_inside_a_signed_request(relay: RelaySide) -> None:
    fields = msgspec.to_builtins(relay.request(), builtin_types=(bytes,))
    document = relay.sign(msgspec.msgpack.encode({**fields, "also": 1}))
    assert isinstance(refused(relay, document), StartRequestRefused)


def test_too_large(relay: RelaySide) -> None:
    assert isinstance(refused(relay, relay.sign(bytes(300_000))), StartRequestRefused)


_RELAY = RelaySide()


@given(st.binary(max_size=2000))
@settings(max_examples=300, deadline=None)
def test_any_bytes_as_a_document_are_refused_by_name(data: bytes) -> None:
    assert isinstance(refused(_RELAY, data), StartRequestRefused)


@given(st.binary(max_size=2000))
@settings(max_examples=300, deadline=None)
def test_any_signed_bytes_are_refused_by_name(data: bytes) -> None:
    assert isinstance(refused(_RELAY, _RELAY.sign(data)), StartRequestRefused | StartRequestStale)


def _json_values() -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary()
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
    )


_FIELDS = list(msgspec.structs.asdict(_RELAY.request()))


@given(st.sampled_from(_FIELDS), _json_values())
@settings(max_examples=400, deadline=None)
def test_any_value_in_any_field_is_refused_by_name_or_genuine(field: str, value: Any) -> None:
    fields = msgspec.to_builtins(_RELAY.request(), builtin_types=(bytes,))
    document = _RELAY.sign(msgspec.msgpack.encode({**fields, field: value}))
    try:
        data, _ = verifier(_RELAY).verify(document)
    except (StartRequestRefused, StartRequestStale):
        return
    assert decode_start(data) is not None


@pytest.mark.parametrize("value", [msgspec.msgpack.Ext(5, b"x"), {b"bytes as a key": 1}, {1.5: 1}, {(1, 2): 3}])
def test_a_configuration_that_is_not_json(relay: RelaySide, value: Any) -> None:
    fields = msgspec.to_builtins(relay.request(), builtin_types=(bytes,))
    document = relay.sign(msgspec.msgpack.encode({**fields, "user_endpoint_config": {"x": value}}))
    assert isinstance(refused(relay, document), StartRequestRefused)


def test_deep_nesting_is_refused_by_name(relay: RelaySide) -> None:
    fields = msgspec.to_builtins(relay.request(), builtin_types=(bytes,))
    packed = msgspec.msgpack.encode({**fields, "user_endpoint_config": {"x": 1}})
    deep = b"\x91" * 50_000 + b"\xc0"
    at = packed.index(b"user_endpoint_config") + len("user_endpoint_config")
    hostile = packed[:at] + b"\x81\xa1x" + deep + packed[at + 4 :]
    assert isinstance(refused(relay, relay.sign(hostile)), StartRequestRefused)


def test_the_context_is_part_of_what_is_signed() -> None:
    key = Ed25519PrivateKey.generate()
    assert SIGNATURE_CONTEXT.endswith(b"\0")
    key.public_key().verify(key.sign(SIGNATURE_CONTEXT + b"x"), SIGNATURE_CONTEXT + b"x")
