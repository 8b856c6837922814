"""The mapper process's own loop with a real callout: who waits for it, and who does not."""

from __future__ import annotations

import json
import pathlib
import time

import pytest

from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import Mapped, MapRequest
from mep_wire.identity import IdentitySet
from tests.support.dropped import as_nobody
from tests.support.start_requests import RelaySide, alice
from tests.unit.mep.test_mapper_service import Running

SLOW_CALLOUT = """#!/bin/sh
sleep 1
id=$(sed 's/.*"id": "\\([^"]*\\)".*/\\1/')
echo '{"DATA_TYPE": "identity_mapping_output#1.0.0", "result": [{"id": "'$id'", "output": "slow"}]}'
"""


@pytest.fixture
def mapping(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("mapping")
    for parent in (directory, directory.parent, directory.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o011)
    program = directory / "callout"
    program.write_text(SLOW_CALLOUT)
    program.chmod(0o755)
    path = directory / "identity_mapping.json"
    documents = [
        {"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "example.edu"},
        {"DATA_TYPE": "external_identity_mapping#1.0.0", "command": [str(program)], "max_concurrent": 4},
    ]
    path.write_text(json.dumps(documents))
    path.chmod(0o644)
    return path


def _start(running: Running, relay: RelaySide, ref: int, username: str) -> None:
    who = IdentitySet(f"account-{ref}", (alice(username=username),))
    running.monitor.send(MapRequest(ref=ref), [sealed_memfd("test", relay.document(identity_set=who))])


def _scenario(path: pathlib.Path) -> tuple[list[tuple[int, str]], float, float]:
    """Ask for twelve people by a callout, then for one by a rule. Return the answers, and when first and last came."""
    relay = RelaySide(now=time.time())
    running = Running(relay, mapping_path=str(path))
    running.ready()
    for ref in range(12):
        _start(running, relay, ref, f"person{ref}@elsewhere.example")
    began = time.monotonic()
    _start(running, relay, 99, "quick@example.edu")
    answers, times = [], []
    for _ in range(13):
        message, _descriptors = running.receive()
        times.append(time.monotonic() - began)
        assert isinstance(message, Mapped), message
        answers.append((message.ref, message.local_user))
    running.end()
    return answers, times[0], times[-1]


def test_a_slow_callout_delays_nobody_elses_start(mapping: pathlib.Path) -> None:
    answers, first_s, last_s = as_nobody(lambda: _scenario(mapping))
    assert answers[0] == (99, "quick")
    assert first_s < 0.9
    assert sorted(answers) == [*((ref, "slow") for ref in range(12)), (99, "quick")]
    assert 2.5 < last_s < 10, "four at a time"
