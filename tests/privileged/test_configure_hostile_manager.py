"""A taken-over manager against the real monitor and the real mapper: it can start nothing that the relay did not sign.

The test is the manager, in the monitor's own words; the relay's signature is made with a key of the test.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import ManagerReady, MapperEpoch, StartAnswered, StartEndpoint
from mep_wire.identity import IdentitySet
from mep_wire.start_request import VerifiedStart, encode_start
from tests.support.accounts import LocalAccount, account
from tests.support.monitor import MonitorRun, Puppet
from tests.support.start_requests import RelaySide, alice
from tests.support.waiting import until

_INTERPRETER = """#!/bin/sh -p
case "$3" in
mep.manager) exec {python} -I {root}/puppet.py manager {root}/control ;;
mep.mapper) exec {python} -I -m mep.mapper ;;
esac
exec {python} -I "$2"
"""
_USER_ENDPOINT = """
import os, socket
with open(os.path.expanduser("~/start"), "wb") as file:
    file.write(os.pread(3, 1 << 20, 0))
report = socket.socket(fileno=5)
report.send(b"READY")
report.recv(1)
"""


@pytest.fixture(scope="module")
def somebody() -> Iterator[LocalAccount]:
    with account() as made:
        yield made


class Taken:
    """An endpoint with the test as its manager."""

    def __init__(self, run: MonitorRun, user: str) -> None:
        self.run, self.user = run, user
        key = X25519PrivateKey.from_private_bytes((run.root / "unseal.key").read_bytes())
        self.relay = RelaySide(unseal_key=key, now=time.time(), token=os.urandom(32))
        (run.root / "python").write_text(_INTERPRETER.format(python=sys.executable, root=run.root))
        main = run.root / "user_endpoint.py"
        main.write_text(_USER_ENDPOINT)
        mapping = run.root / "identity_mapping.json"
        users = {"alice": user, "root": "root", "mep": "mep", "gone": "meptest-nobody-is-called-so"}
        rules = [
            {"source": "{username}", "match": rf"{name}@example\.edu", "output": local} for name, local in users.items()
        ]
        mapping.write_text(json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": rules}]))
        section = replace(run.resolved.mapper, relay_signing_key=self.relay.public_key.hex(), mapping_path=str(mapping))
        run.resolved = replace(run.resolved, mapper=section, user_endpoint_main=str(main))
        self._refs = iter(range(1, 1000))

    def begin(self) -> None:
        """Become the manager of the monitor, which has been started."""
        self.manager: Puppet = self.run.puppet("manager")
        self.manager.send(ManagerReady(version="test"))
        self.relay.epoch = self.manager.take(MapperEpoch)[0].epoch

    def request(self, **changes: object) -> bytes:
        return encode_start(self.relay.request(endpoint_id=self.run.resolved.mapper.endpoint_id, **changes))

    def ask(self, document: bytes) -> StartAnswered:
        ref = next(self._refs)
        self.manager.send(StartEndpoint(ref=ref), sealed_memfd("start", document))
        answer = self.manager.take(StartAnswered)[0]
        assert answer.ref == ref
        return answer

    def refused(self, document: bytes, code: str, outcome: str = "refused") -> StartAnswered:
        answer = self.ask(document)
        assert (answer.outcome, answer.code) == (outcome, code), answer
        assert self.user not in answer.public
        assert self.run.record(answer.uep_id).get("uep_pid", 0) == 0
        return answer


@pytest.fixture
def taken(somebody: LocalAccount) -> Iterator[Taken]:
    run = MonitorRun()
    made = Taken(run, somebody.name)
    with run:
        made.begin()
        yield made


def test_what_the_relay_signed_is_what_the_user_endpoint_gets(taken: Taken, somebody: LocalAccount) -> None:
    data = taken.request()
    answer = taken.ask(taken.relay.sign(data))
    assert (answer.outcome, answer.code) == ("started", ""), taken.run.log_text()
    start = Path(somebody.home, "start")
    verified = msgspec.msgpack.decode(start.read_bytes(), type=VerifiedStart)
    assert (verified.request, verified.join_token) == (data, taken.relay.token)
    assert start.stat().st_uid == somebody.uid
    assert taken.ask(taken.relay.sign(data)).code == "START_REQUEST_STALE"
    again = taken.ask(taken.relay.sign(taken.request()))
    assert again.outcome == "already_running"


def test_nothing_else_starts_anything(taken: Taken) -> None:
    relay, root = taken.relay, IdentitySet("account-1", (alice(username="root@example.edu"),))
    genuine = taken.request()
    _, signature = msgspec.msgpack.decode(relay.sign(genuine))
    altered = taken.request(identity_set=root)
    taken.refused(msgspec.msgpack.encode([altered, signature]), "START_REQUEST_REFUSED")
    taken.refused(msgspec.msgpack.encode([genuine, bytes(64)]), "START_REQUEST_REFUSED")
    taken.refused(RelaySide(unseal_key=relay.unseal_key).sign(genuine), "START_REQUEST_REFUSED")
    foreign = encode_start(relay.request(endpoint_id="8d3a3c0e-5b1e-4b5f-9d0a-111111111111"))
    taken.refused(relay.sign(foreign), "START_REQUEST_REFUSED")
    taken.refused(relay.sign(taken.request(epoch=os.urandom(16))), "START_REQUEST_STALE", "unavailable")
    old = taken.request(issued_at=time.time() - 3600, expires_at=time.time() - 3540)
    taken.refused(relay.sign(old), "START_REQUEST_STALE", "unavailable")
    taken.refused(b"", "START_REQUEST_REFUSED")
    taken.refused(os.urandom(1000), "START_REQUEST_REFUSED")
    # None of this cost the manager its life, or the endpoint its service.
    assert taken.ask(relay.sign(genuine)).outcome == "started"


@pytest.mark.parametrize(
    ("username", "code"),
    [
        ("root@example.edu", "ACCOUNT_REFUSED"),
        ("mep@example.edu", "ACCOUNT_REFUSED"),
        ("gone@example.edu", "ACCOUNT_REFUSED"),
        ("mallory@example.edu", "IDENTITY_NOT_MAPPED"),
    ],
)
def test_people_who_may_not(taken: Taken, username: str, code: str) -> None:
    who = IdentitySet("account-1", (alice(username=username),))
    answer = taken.refused(taken.relay.sign(taken.request(identity_set=who)), code)
    assert "root" not in answer.public
    assert "nobody-is-called-so" not in answer.public


def test_a_new_mapper_means_a_new_epoch(taken: Taken) -> None:
    before = taken.relay.epoch
    document = taken.relay.sign(taken.request())
    mapper = until("the mapper's process", lambda: mapper_pid(taken.run.pid))
    os.kill(mapper, 9)
    after = taken.manager.take(MapperEpoch)[0].epoch
    assert after != before
    taken.refused(document, "START_REQUEST_STALE", "unavailable")
    taken.relay.epoch = after
    assert taken.ask(taken.relay.sign(taken.request())).outcome == "started"


def mapper_pid(monitor: int) -> int:
    for pid in Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split():
        if b"mep.mapper" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    return 0
