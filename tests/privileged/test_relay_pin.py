"""The relay's keys are pinned at registration: root's view when the relay presents others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mep_wire.relay_keys import RelayKeys, rotation_statement
from relay.state_dir import StateDir
from tests.support.cli import Cli
from tests.support.registrar import Registrar, configure

FIRST = RelayKeys(b"\x22" * 32, b"\x11" * 32)
CHANGES = {"signing_key": "66" * 32, "link_key": "77" * 32}


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """State.open changes the process's umask, which later tests are not to inherit."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def again(mep: Cli, *more: str, expect: int = 0) -> str:
    token = str(mep.directory / "token")
    done = mep("register", "site", "--again", "--token-file", token, *more, expect=expect)
    return done.stdout + done.stderr


def pinned(mep: Cli) -> RelayKeys:
    said = json.loads(mep.path("var", "site", "registration.json").read_text())
    return RelayKeys(bytes.fromhex(said["signing_public_key"]), bytes.fromhex(said["link_public_key"]))


def offered(registrar: Registrar) -> RelayKeys:
    return RelayKeys(bytes.fromhex(registrar.signing_key), bytes.fromhex(registrar.link_key))


def test_configure_register_and_status_show_the_fingerprint(mep: Cli, registrar: Registrar) -> None:
    assert FIRST.fingerprint in configure(mep, registrar).stdout
    assert FIRST.fingerprint in again(mep)
    assert FIRST.fingerprint in mep("status", "site", expect=3).stdout
    assert mep.json("status", "site", expect=3)["relay_key"] == FIRST.fingerprint


@pytest.mark.parametrize("kind", CHANGES)
def test_a_silent_change_is_refused_until_its_fingerprint_is_given(mep: Cli, registrar: Registrar, kind: str) -> None:
    configure(mep, registrar)
    before = mep.path("var", "site", "registration.json").read_bytes()
    setattr(registrar, kind, CHANGES[kind])
    said = again(mep, expect=5)
    for part in (FIRST.fingerprint, offered(registrar).fingerprint, "RELAY_KEY_CHANGED", "--new-relay-key"):
        assert part in said
    assert f"a different {kind.removesuffix('_key')} key" in said
    for wrong in (FIRST.fingerprint, "SHA256:AAAA"):
        assert "RELAY_KEY_UNEXPECTED" in again(mep, "--new-relay-key", wrong, expect=5)
    assert mep.path("var", "site", "registration.json").read_bytes() == before
    again(mep, "--new-relay-key", offered(registrar).fingerprint)
    assert pinned(mep) == offered(registrar)
    again(mep)


@pytest.mark.parametrize("option", ["--new-keys", "--new-id"])
def test_new_keys_and_a_new_id_leave_the_pin(mep: Cli, registrar: Registrar, option: str) -> None:
    configure(mep, registrar)
    registrar.signing_key = CHANGES["signing_key"]
    assert "RELAY_KEY_CHANGED" in again(mep, option, expect=5)
    # Whatever the first try has put aside, the next one knows the pin too.
    token = str(mep.directory / "token")
    second = ["--again"] if option == "--new-keys" else []
    assert "RELAY_KEY_CHANGED" in mep("register", "site", *second, "--token-file", token, expect=5).stderr
    mep("register", "site", *second, "--token-file", token, "--new-relay-key", offered(registrar).fingerprint)
    assert pinned(mep) == offered(registrar)


def test_a_rotated_key_needs_no_flag_and_a_forged_chain_does(mep: Cli, registrar: Registrar, tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "relay")
    first = state.keys()
    registrar.signing_key, registrar.link_key = first.public.signing.hex(), first.public.link.hex()
    configure(mep, registrar)
    state.rotate_keys(60.0)
    now = state.rotate_keys(60.0)
    registrar.signing_key, registrar.link_key = now.public.signing.hex(), now.public.link.hex()
    thief = StateDir.open(tmp_path / "thief").keys()
    statement = rotation_statement(now.earlier[0].keys, now.earlier[1].keys)
    genuine = [(one.keys, one.signature) for one in now.earlier]
    forged = [(now.earlier[0].keys, thief.signing.sign(statement)), genuine[1]]
    for chain, code in (([], 5), (forged, 5), (genuine[1:], 5), (genuine, 0)):
        registrar.earlier_keys = [
            {
                "signing_public_key": keys.signing.hex(),
                "link_public_key": keys.link.hex(),
                "signature": signature.hex(),
            }
            for keys, signature in chain
        ]
        said = again(mep, expect=code)
        assert ("RELAY_KEY_CHANGED" in said) == (code != 0)
    assert first.public.fingerprint in said
    assert "have signed that" in said
    assert pinned(mep) == now.public


def test_nothing_else_of_the_answer_reaches_root(mep: Cli, registrar: Registrar) -> None:
    registrar.answer = (400, {"reason": "\x1b]0;owned\x07 no\n\x9b2J " + "x" * 100_000, "code": "BODY_INVALID",
                              "http_status_code": 400, "correlation_id": "\x1b[2J"})  # fmt: skip
    said = configure(mep, registrar, expect=5).stderr
    assert "\\x1b]0;owned\\x07 no\\n\\x9b2J" in said
    assert len(said) < 2000
    assert all(c.isprintable() or c == "\n" for c in said)
    registrar.answer = None
    mep("register", "site", "--token-file", str(mep.directory / "token"))
    assert json.loads(mep.path("var", "site", "registration.json").read_text())["owner"] == []
