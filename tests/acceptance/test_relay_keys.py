"""`mep-relay key`: the fingerprint, and the answer of a relay with changed keys to endpoints with the old pin."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature

from mep_wire import messages
from mep_wire.relay_keys import RelayKeys
from mep_wire.start_request import SIGNATURE_CONTEXT
from tests.support.fake_peer import FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person


def fingerprint(relay: RelayProcess) -> str:
    return str(json.loads(relay.cli("key", "--json").stdout)["fingerprint"])


def test_there_is_no_key_where_there_is_no_relay(tmp_path: Path) -> None:
    done = RelayProcess(tmp_path).cli("key", check=False)
    assert done.returncode == 1
    assert "there is no relay" in done.stderr
    assert not (tmp_path / "relay-state").exists()


def test_a_relay_that_has_never_run_has_no_key(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path)
    relay.cli("user", "add", "alice@example.edu")
    done = relay.cli("key", check=False)
    assert done.returncode == 1
    assert "has no keys yet: `mep-relay serve` makes them" in done.stderr


def test_the_fingerprint_is_that_of_what_endpoints_are_told(tmp_path: Path) -> None:
    with RelayProcess(tmp_path) as relay:
        manager = FakeManager(relay, relay.add_user("admin@example.edu"))
        told = RelayKeys(manager.signing_key.public_bytes_raw(), manager.relay_key)
        assert told.fingerprint == fingerprint(relay)
        assert told.fingerprint in relay.cli("key").stdout
        assert told.fingerprint in relay.log.read_text()


def test_after_a_rotation_old_and_new_pins_are_served(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path)
    with relay:
        token = relay.add_user("admin@example.edu")
        old = FakeManager(relay, token)
        before = fingerprint(relay)
        said = relay.cli("key", "rotate", "--overlap-days", "1")
        assert "mep register NAME --again" in said.stderr
        assert before in said.stdout
        assert fingerprint(relay) != before
        assert fingerprint(relay) in said.stdout
        assert {stat.S_IMODE(one.stat().st_mode) for one in relay.state.iterdir()} == {0o600}
    with relay:
        person = Person(relay)
        new = FakeManager(relay, token).hello()
        assert new.signing_key.public_bytes_raw() != old.signing_key.public_bytes_raw()
        assert new.relay_key == old.relay_key, "the link goes on"
        person.submit(new.endpoint_id, person.function(), ["payload"])
        signed = new.expect(messages.SignedStart)
        ours, earlier = signed.signature[:64], signed.signature[64:]
        data = SIGNATURE_CONTEXT + signed.request
        new.signing_key.verify(ours, data)
        old.signing_key.verify(earlier, data)
        with pytest.raises(InvalidSignature):
            old.signing_key.verify(ours, data)


def test_a_stolen_key_is_not_presented(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path)
    with relay:
        before = fingerprint(relay)
        said = relay.cli("key", "rotate", "--stolen")
        assert "--new-relay-key" in said.stderr
        assert before not in said.stdout
