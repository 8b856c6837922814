"""Text from a relay or a directory reaches root's terminal without its control characters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mep.boundary.messages import LinkStatus
from tests.privileged.test_monitor_rechecks import monitor
from tests.privileged.test_status_command import on_terminal, status
from tests.support import raw_ldap
from tests.support.accounts import LocalAccount, account
from tests.support.cli import Cli
from tests.support.monitor import start_as
from tests.support.registrar import REFUSAL, Registrar, configure
from tests.support.waiting import until

ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt.exe\u2028line\x7f"
RAW = set(ATTACK) - set("]0;owned[2J31mtxt.exeline")


def harmless(text: str) -> bool:
    return not RAW & set(text)


@pytest.fixture
def alice() -> Iterator[LocalAccount]:
    with account() as made:
        yield made


def test_a_relays_refusal(mep: Cli, registrar: Registrar) -> None:
    forged = f"no{ATTACK}\nmep: run this as root: rm -rf /"
    registrar.answer = (403, {**REFUSAL, "reason": forged, "code": f"X{ATTACK}", "correlation_id": f"1{ATTACK}\n"})
    said = configure(mep, registrar, expect=5).stderr
    assert harmless(said)
    assert "\\x1b[2J" in said and "\\u202e" in said
    assert not any(line.startswith("mep: run this") for line in said.splitlines())


def test_a_relays_warnings_and_its_answers(mep: Cli, registrar: Registrar) -> None:
    configure(mep, registrar)
    keys = json.loads(mep.path("var", "site", "keys.json").read_text())
    good = {
        "endpoint_id": keys["endpoint_id"], "link_address": "tcp://127.0.0.1:9", "link_public_key": "11" * 32,
        "signing_public_key": "22" * 32, "owner": [{"id": "id-1", "username": f"admin{ATTACK}"}],
    }  # fmt: skip
    token = str(mep.directory / "token")
    again = ("register", "site", "--token-file", token, "--again")
    registrar.answer = (200, {**good, "warnings": [f"old{ATTACK}\nwarning: forged"]})
    done = mep(*again)
    assert harmless(done.stdout + done.stderr) and "\\x1b[2J" in done.stderr
    assert "\nwarning: forged" not in done.stderr
    registrar.answer = (200, {**good, "endpoint_id": f"other{ATTACK}"})
    assert harmless(mep(*again, expect=5).stderr)
    registrar.answer = (200, {**good, "link_address": f"tcp://{ATTACK}:1"})
    assert harmless(mep(*again, expect=5).stderr)


def test_status_on_a_terminal_and_in_a_pipe(alice: LocalAccount) -> None:
    with monitor(60.0) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        manager.send(LinkStatus("up", f"relay{ATTACK}"))
        told = until("the link is told", lambda: (text := status(run)) and "relay" in text and text)
        assert harmless(told)
        colours = on_terminal(run, 250)  # the table's own
        assert not (RAW - {"\x1b"}) & set(colours) and "\x1b]0;" not in colours


def test_a_name_on_the_command_line(mep: Cli) -> None:
    """A name or file that a script passed on from elsewhere is shown in the refusal."""
    assert harmless(mep("status", f"x{ATTACK}", expect=4).stderr)
    assert harmless(mep("map", "--file", f"/x{ATTACK}", "--identity", "a@b.c", expect=2).stderr)


def test_identities_on_the_terminal(mep: Cli) -> None:
    rule = {"source": "{username}", "match": "(.*)@b\\.c", "output": "{0}"}
    mapping = Path(mep.directory, "mapping.json")
    mapping.write_text(json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule]}]))
    identity = json.dumps({"id": "1", "username": f"a{ATTACK}@b.c"})
    done = mep("map", "--file", str(mapping), "--identity", identity, expect=1)
    assert harmless(done.stdout + done.stderr)


def refused(number: int) -> bytes:
    """Return an LDAP server's refusal of the search with this number, with a diagnostic message."""
    message = b"no" + ATTACK.encode()
    result = b"\x0a\x01\x01\x04\x00\x04" + bytes([len(message)]) + message
    body = b"\x02\x02" + number.to_bytes(2, "big") + b"\x65" + bytes([len(result)]) + result
    return b"\x30" + bytes([len(body)]) + body


def test_a_directorys_diagnostic_message(mep: Cli) -> None:
    with raw_ldap.serve(lambda connection, number: connection.sendall(refused(number))) as port:
        document = {
            "DATA_TYPE": "ldap_identity_mapping#1.0.0", "servers": [f"ldap://127.0.0.1:{port}"], "start_tls": False,
            "base": "ou=people,dc=example,dc=edu", "filter": "(mail={username})",
        }  # fmt: skip
        mapping = Path(mep.directory, "mapping.json")
        mapping.write_text(json.dumps([document]))
        done = mep("map", "--file", str(mapping), "--identity", "a@example.edu", expect=1)
    assert harmless(done.stdout + done.stderr)
    assert "search answered" in done.stdout and "\\x1b[2J" in done.stdout


@pytest.mark.parametrize("words", [(f"x{ATTACK}",), ("user", "list", "--state", f"/x{ATTACK}"), ("user", f"x{ATTACK}")])
def test_the_relays_command(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [Path(sys.prefix, "bin", "mep-relay"), *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert harmless(done.stdout + done.stderr) and "\\x9b31m" in done.stderr
