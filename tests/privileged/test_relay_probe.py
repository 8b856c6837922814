"""`mep check` asks the relay in a child without privilege, and root reads notes of one fixed size from it."""

from __future__ import annotations

import pwd
from collections.abc import Callable
from socket import socket

import pytest

from mep.cli import relay_probe
from mep.cli.exit_codes import CliFailed
from mep.cli.relay_answer import MAX_NOTES, RECORD_BYTES, AnswerKind, RelayAnswer, encode
from tests.support.accounts import LocalAccount
from tests.support.cli import Cli
from tests.support.registrar import Registrar, configure

NOTE, DONE = encode(RelayAnswer(AnswerKind.NOTE, "a note")), encode(RelayAnswer(AnswerKind.DONE))
RELAY = relay_probe.Pinned("http://127.0.0.1:1", "tcp://127.0.0.1:1", bytes(32), 30.0)


def test_the_account_for_this_alone_asks(mep: Cli, registrar: Registrar) -> None:
    configure(mep, registrar)
    said = mep("check", "site").stderr
    asked = registrar.calls[-1]
    assert (asked["method"], asked["path"], asked["token"]) == ("GET", "/openapi.json", None)
    assert asked["uid"] == pwd.getpwnam("mep-register").pw_uid
    assert "link tcp://127.0.0.1:9 cannot be reached from here" in said, "threads of libzmq may start"


def _sends(*datagrams: bytes) -> Callable[[relay_probe.Pinned, socket], None]:
    def work(_: relay_probe.Pinned, answers: socket) -> None:
        for one in datagrams:
            answers.send(one)

    return work


@pytest.mark.parametrize(
    ("datagrams", "reason"),
    [
        ([b'{"notes": ["x"]}'], "failed: 16 bytes"),
        ([NOTE, b"x" * RECORD_BYTES], "failed: a field"),
        ([NOTE, NOTE + b"x"], "failed"),
        ([NOTE], "failed: it ended without an answer"),
        ([NOTE] * (MAX_NOTES + 2), "too many notes"),
    ],
)
def test_a_child_that_was_taken_over(
    alice: LocalAccount, monkeypatch: pytest.MonkeyPatch, datagrams: list[bytes], reason: str
) -> None:
    monkeypatch.setattr(relay_probe, "_work", _sends(*datagrams))
    with pytest.raises(CliFailed) as failed:
        relay_probe.ask(RELAY, pwd.getpwnam(alice.name))
    assert reason in failed.value.text


def test_notes(alice: LocalAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_probe, "_work", _sends(NOTE, NOTE, DONE))
    assert relay_probe.ask(RELAY, pwd.getpwnam(alice.name)) == ["a note", "a note"]
