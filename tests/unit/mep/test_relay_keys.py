"""Which keys of a relay may take the place of the pinned ones, and how its signatures overlap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.pinning import check_keys, leads_to
from mep.mapper.start_verifier import Verifier
from mep_wire.errors import StartRequestRefused
from mep_wire.relay_keys import EarlierKeys, RelayKeys
from mep_wire.start_request import MAX_SIGNATURES, SIGNATURE_CONTEXT, encode_start
from relay.dispatch.start_signing import OverlapSigner
from relay.state_dir import Keys, StateDir, StateRefused, _Pending, _Rotations
from tests.support.start_requests import ENDPOINT, EPOCH, NOW, RelaySide

URL = "https://relay.example.org"
OTHER = RelayKeys(b"s" * 32, b"l" * 32)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """State.open changes the process's umask, which later tests are not to inherit."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir.open(tmp_path / "relay")


def check(pinned: RelayKeys | None, keys: Keys, expected: str = "") -> str:
    return check_keys("site", URL, pinned, keys.public, keys.earlier, expected)


def refused(pinned: RelayKeys, keys: Keys, expected: str = "") -> str:
    with pytest.raises(CliFailed) as caught:
        check(pinned, keys, expected)
    assert caught.value.exit_code is Exit.RELAY
    return caught.value.text


def test_a_fingerprint_is_written_as_ssh_writes_one() -> None:
    # (printf 'mep relay keys v1\\0'; printf s%.0s {1..32}; printf l%.0s {1..32}) | openssl dgst -sha256 -binary |
    # base64
    assert OTHER.fingerprint == "SHA256:jDKZ6xNtatWs/I6BHSjOxd0jtGvEyjVT0d0AtpOszK8"
    assert RelayKeys(OTHER.signing, b"x" * 32).fingerprint != OTHER.fingerprint


def test_the_first_registration_and_one_with_the_pinned_keys(state: StateDir) -> None:
    keys = state.keys()
    assert check(None, keys) == ""
    assert check(keys.public, keys) == ""
    assert check(keys.public, keys, keys.public.fingerprint) == ""


@pytest.mark.parametrize("kind", ["signing", "link"])
def test_a_change_is_refused_with_both_fingerprints_and_what_to_do(state: StateDir, kind: str) -> None:
    keys = state.keys()
    pinned = RelayKeys(
        OTHER.signing if kind == "signing" else keys.public.signing, OTHER.link if kind == "link" else keys.public.link
    )
    said = refused(pinned, keys)
    for part in (f"a different {kind} key", pinned.fingerprint, keys.public.fingerprint, "RELAY_KEY_CHANGED",
                 "mep register site --again --new-relay-key FINGERPRINT", "mep-relay key"):  # fmt: skip
        assert part in said
    assert keys.public.fingerprint in check(pinned, keys, keys.public.fingerprint)


def test_a_fingerprint_that_is_not_the_relays(state: StateDir) -> None:
    keys = state.keys()
    for pinned in (OTHER, keys.public):
        said = refused(pinned, keys, "SHA256:else")
        assert "RELAY_KEY_UNEXPECTED" in said
        assert keys.public.fingerprint in said


def test_keys_that_the_earlier_ones_have_signed(state: StateDir) -> None:
    first = state.keys()
    second = state.rotate_keys(60.0)
    third = state.rotate_keys(60.0, new_link=True)
    assert len({one.public for one in (first, second, third)}) == 3
    assert state.keys().public == third.public
    for pinned in (first.public, second.public):
        assert "have signed that" in check(pinned, third)
    assert "RELAY_KEY_CHANGED" in refused(OTHER, third)
    assert "RELAY_KEY_CHANGED" in refused(third.public, second), "not the way back"


def test_a_forged_chain(state: StateDir, tmp_path: Path) -> None:
    first = state.keys()
    thief = StateDir.open(tmp_path / "thief").keys()
    statement = b"mep relay key rotation v1\0" + first.signing_public + first.link_public
    statement += thief.signing_public + thief.link_public
    for signature in (thief.signing.sign(statement), bytes(64), b"", first.signing.sign(statement[26:])):
        assert not leads_to(first.public, [EarlierKeys(first.public, signature)], thief.public)
    genuine = [EarlierKeys(first.public, first.signing.sign(statement))]
    assert leads_to(first.public, genuine, thief.public), "so the statement above is the right one"
    assert not leads_to(first.public, genuine, OTHER)
    assert not leads_to(RelayKeys(first.signing_public, OTHER.link), genuine, thief.public)
    second = state.rotate_keys(60.0)
    middle = EarlierKeys(second.public, thief.signing.sign(statement))
    assert not leads_to(first.public, [*second.earlier, middle], thief.public), "one link is genuine, the next is not"


def test_a_stolen_key_signs_nothing_more(state: StateDir) -> None:
    first = state.keys()
    state.rotate_keys(60.0)
    now = state.rotate_keys(60.0, stolen=True)
    assert (now.earlier, now.overlap) == ((), ())
    assert "RELAY_KEY_CHANGED" in refused(first.public, now)


def test_in_the_overlap_old_and_new_pins_accept_starts_and_later_only_the_new(state: StateDir) -> None:
    first = state.keys()
    second = state.rotate_keys(3600.0)
    data = encode_start(RelaySide().request())
    ((_, until),) = second.overlap

    def accepted(pinned: RelayKeys, signature: bytes) -> bool:
        verifier = Verifier(endpoint_id=ENDPOINT, signing_key=pinned.signing, epoch=EPOCH, clock_skew_s=30.0,
                            clock=lambda: NOW)  # fmt: skip
        try:
            verifier.verify(msgspec.msgpack.encode((data, signature)))
        except StartRequestRefused:
            return False
        return True

    def signed_at(now: float) -> bytes:
        return OverlapSigner(second.signing, second.overlap, lambda: now).sign(SIGNATURE_CONTEXT + data)

    during, after = signed_at(until - 1), signed_at(until)
    assert [accepted(pinned, during) for pinned in (first.public, second.public, OTHER)] == [True, True, False]
    assert [accepted(pinned, after) for pinned in (first.public, second.public, OTHER)] == [False, True, False]
    assert not accepted(second.public, during[:64] * (MAX_SIGNATURES + 1)), "too many"
    assert not accepted(second.public, b"")
    assert not accepted(second.public, during[1:])


def test_more_keys_in_overlap_than_a_request_may_have_signatures(state: StateDir) -> None:
    for _ in range(MAX_SIGNATURES + 2):
        keys = state.rotate_keys(3600.0)
    assert len(OverlapSigner(keys.signing, keys.overlap).sign(b"data")) == 64 * MAX_SIGNATURES


def test_secrets_whose_time_is_up_are_forgotten(state: StateDir) -> None:
    first = state.keys()
    secret = first.signing.private_bytes_raw().hex()
    state.rotate_keys(3600.0)
    assert secret in (state.directory / "rotations.json").read_text()
    state.rotate_keys(0.0)
    text = (state.directory / "rotations.json").read_text()
    (state.directory / "rotations.json").write_text(text.replace('"until":', '"until":0.5,"was":'))
    keys = state.keys()
    assert secret not in (state.directory / "rotations.json").read_text()
    assert keys.overlap == ()
    assert leads_to(first.public, keys.earlier, keys.public), "the signatures stay"


@pytest.mark.parametrize("name", ["signing.key", "link.key"])
def test_a_rotation_that_was_cut_short_is_completed(state: StateDir, name: str) -> None:
    first = state.keys()
    before = (state.directory / "signing.key").read_bytes()
    state._write_rotations(_cut_short(state))
    if name == "signing.key":  # the link key had been written already
        pending = msgspec.json.decode((state.directory / "rotations.json").read_bytes())["pending"]
        (state.directory / "link.key").write_bytes(bytes.fromhex(pending["link"]))
    now = state.keys()
    assert now.public != first.public
    assert leads_to(first.public, now.earlier, now.public)
    assert before != (state.directory / "signing.key").read_bytes()


def _cut_short(state: StateDir) -> _Rotations:
    """Return rotations.json after a rotation's decision, with the key files as they were before."""
    files = {one: (state.directory / one).read_bytes() for one in ("signing.key", "link.key")}
    state.rotate_keys(60.0, new_link=True)
    rotations = state._rotations()
    new = {one: (state.directory / one).read_bytes() for one in files}
    for one, data in files.items():
        (state.directory / one).write_bytes(data)
    rotations.pending = _Pending(signing=new["signing.key"].hex(), link=new["link.key"].hex())
    return rotations


def test_a_key_that_the_chain_does_not_lead_to(state: StateDir) -> None:
    state.rotate_keys(60.0)
    (state.directory / "signing.key").write_bytes(bytes(32))
    with pytest.raises(StateRefused, match="restore"):
        state.keys()
