"""Hostile manager and mapper by the hundred: random well-formed and damaged messages, and a monitor that goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random

import pytest

from mep.boundary.channel import encode
from mep.boundary.errors import Refusal
from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import (
    DESCRIPTORS,
    WIRE_TYPES,
    ManagerReady,
    MapperEpoch,
    MapperReady,
    MapRequest,
    Message,
    StartAnswered,
    StopEndpoint,
)
from tests.support.monitor import MonitorRun, Puppet, ask, new_uep_id
from tests.support.waiting import until

SESSIONS = 12
MESSAGES = 40
TEXTS = ["", "root", "nobody", "x" * 32, "\u2028\x1b[0m\n", "é" * 500, "../..", *Refusal]


KINDS = [each for each in WIRE_TYPES.values() if each is not StopEndpoint]
"""Messages that may come at random. A manager may stop the whole endpoint, after which no monitor goes on."""


def random_message(chance: random.Random) -> Message:
    cls = chance.choice(KINDS)
    fields: dict[str, object] = {}
    for field in dataclasses.fields(cls):
        cap = int(field.metadata.get("cap", 0))
        if field.type == "int":
            fields[field.name] = chance.choice([0, 1, 2, 3, -1, 2**63 - 1, -(2**63)])
        elif field.type == "bytes":
            fields[field.name] = chance.randbytes(cap)
        else:
            text = new_uep_id() if field.name == "uep_id" and chance.random() < 0.8 else chance.choice(TEXTS)
            fields[field.name] = text.encode()[:cap].decode(errors="ignore")
    return cls(**fields)


def send_random(puppet: Puppet, chance: random.Random) -> None:
    message = random_message(chance)
    frame = bytearray(encode(message))
    if chance.random() < 0.1:
        frame[chance.randrange(len(frame))] ^= chance.randrange(1, 256)
    count = DESCRIPTORS.get(type(message), 0) if chance.random() < 0.9 else chance.randrange(4)
    document = sealed_memfd("fuzz", chance.randbytes(20))
    try:
        puppet.raw(bytes(frame), *[document] * count)
    finally:
        os.close(document)


def play(puppet: Puppet, ready: Message, chance: random.Random) -> None:
    with contextlib.suppress(OSError):
        if chance.random() < 0.9:
            puppet.send(ready)
        for _ in range(MESSAGES):
            send_random(puppet, chance)


@pytest.mark.parametrize("seed", range(SESSIONS))
def test_random_session(seed: int) -> None:
    chance = random.Random(seed)
    with MonitorRun() as run:
        mapper, manager = run.puppet("mapper"), run.puppet("manager")
        play(mapper, MapperReady(epoch=b"e" * 16), chance)
        play(manager, ManagerReady(version="x"), chance)
        for puppet in (mapper, manager):
            if not puppet.is_gone():
                puppet.kill()
        mapper, manager = run.puppet("mapper"), run.puppet("manager")
        mapper.send(MapperReady(epoch=b"e" * 16))
        manager.send(ManagerReady(version="x"))
        manager.take(MapperEpoch)
        ask(manager, 77)
        os.close(mapper.take(MapRequest)[1][0])
        mapper.kill()
        assert manager.take(StartAnswered)[0].ref == 77
        until("nothing runs", lambda: not run.status().get("user_endpoints"))
        assert "Traceback" not in run.log_text()
