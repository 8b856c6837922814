"""An endpoint of anybody's can't fill the relay's log: each kind of line about it is written a few times."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from mep_wire import PROTOCOL_VERSION, messages
from relay.log import PEER_BURST
from tests.support.fake_peer import WAIT_MS, FakeLink, FakeManager, FakeUep
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.relay_steps import running_uep

COUNT = 200


def _until_read(link: FakeLink) -> None:
    """Wait until the relay has read what was sent on this link: it answers in order."""
    link.send(messages.Ping(sent_at=1.0))
    while link.socket.poll(6 * WAIT_MS):
        if isinstance(link._decode(link.socket.recv()), messages.Pong):
            return
    raise AssertionError("no answer")


def _ends_of_other_processes(lab: FakeManager, uep: FakeUep) -> FakeLink:
    for number in range(COUNT):
        lab.ended(uep.uep_id, f"CODE_{number}", incarnation=os.urandom(16))
    return lab


def _ends_again(lab: FakeManager, uep: FakeUep) -> FakeLink:
    for number in range(COUNT):
        lab.ended(uep.uep_id, f"CODE_{number}")
    return lab


def _hellos(_: FakeManager, uep: FakeUep) -> FakeLink:
    for _ in range(COUNT):
        uep.send(messages.UepHello(protocol=PROTOCOL_VERSION, uep_id=uep.uep_id, held=[]))
    return uep


def _links(_: FakeManager, uep: FakeUep) -> FakeLink:
    for _ in range(COUNT // 4):
        uep.close()
        uep.connect()
        uep.hello([])
    return uep


@pytest.mark.parametrize("flood", [_ends_of_other_processes, _ends_again, _hellos, _links])
def test_a_flood_of_one_peer(
    relay: RelayProcess, alice: Person, lab: FakeManager, function: str, flood: Callable[..., Any]
) -> None:
    _, uep = running_uep(alice, lab, function)
    before = relay.log.read_text().count(uep.uep_id)
    _until_read(flood(lab, uep))
    assert relay.log.read_text().count(uep.uep_id) - before <= 4 * PEER_BURST
