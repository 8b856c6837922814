"""The mapper process's own loop with a real callout: who waits for it, and who does not."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from identity.concurrency_limits import MAX_AT_ONE, MAX_SLOW
from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import (
    ManagerReady,
    Mapped,
    MapperEpoch,
    MapRequest,
    Message,
    NoLongerMapped,
    NotMapped,
    StartAnswered,
    StartOutcome,
    StillMapped,
)
from mep.boundary.resolved_config import Caps
from mep.mapper.mapper import MAX_MAPPING_THREADS, MAX_RECHECK_THREADS, MAX_RECHECKS_WAITING
from mep.root.monitor.start_requests import MAX_MAPPING
from mep_wire.identity import IdentitySet
from tests.support.cli import open_directory
from tests.support.dropped import as_nobody
from tests.support.monitor import MonitorRun, ask
from tests.support.start_requests import ENDPOINT, RelaySide, alice
from tests.support.waiting import until
from tests.unit.mep.test_mapper_service import Running

T = TypeVar("T")
UEP = "0b2bb5a8-6a5f-4b3c-8f5b-cccccccccccc"
CALLOUT = """#!{python} -IS
import json, os, sys, time
asked = json.load(sys.stdin)["identities"]
open(os.path.join({place!r}, "run", str(os.getpid())), "w").close()
while not os.path.exists(os.path.join({place!r}, "go")):
    time.sleep(0.02)
result = [{{"id": asked[0]["id"], "output": "slow"}}]
print(json.dumps({{"DATA_TYPE": "identity_mapping_output#1.0.0", "result": result}}))
"""
"""Maps the identity when the test says `go`."""


class Site:
    """A mapping of example.edu by rule. All other identities go to a callout that answers when the test lets it."""

    def __init__(self, directory: pathlib.Path, max_concurrent: int) -> None:
        directory.chmod(0o1777)
        self._go, self._run = directory / "go", directory / "run"
        self._run.mkdir()
        self._run.chmod(0o1777)
        program = directory / "callout"
        program.write_text(CALLOUT.format(python=sys.executable, place=str(directory)))
        program.chmod(0o755)
        keys = {"command": [str(program)], "max_concurrent": max_concurrent, "timeout_s": 120}
        documents = [
            {"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "example.edu"},
            {"DATA_TYPE": "external_identity_mapping#1.0.0", **keys},
            {"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "elsewhere.example"},
        ]
        self.mapping = directory / "identity_mapping.json"
        self.mapping.write_text(json.dumps(documents))
        self.mapping.chmod(0o644)

    def running(self) -> int:
        """Return how many callouts have begun."""
        return len(list(self._run.iterdir()))

    def wait_for(self, count: int) -> None:
        until(f"{count} running callouts", lambda: self.running() >= count, details=self.running)

    def go(self) -> None:
        """Let every callout answer."""
        self._go.touch()


@pytest.fixture
def site() -> Iterator[Site]:
    with open_directory() as directory:
        yield Site(directory, max_concurrent=4)


def start(running: Running, relay: RelaySide, ref: int, username: str) -> None:
    who = IdentitySet(f"account-{ref}", (alice(id=str(uuid.UUID(int=ref)), username=username),))
    _ask(running, ref, relay.document(identity_set=who))


def recheck(running: Running, relay: RelaySide, ref: int, username: str) -> None:
    who = IdentitySet(f"account-{ref}", (alice(id=str(uuid.UUID(int=ref)), username=username),))
    fields = {"user_endpoint_config": {}, "user_runtime": {}, "sealed_join_token": b""}
    _ask(running, ref, relay.document(recheck=True, uep_id=UEP, identity_set=who, **fields))


def _ask(running: Running, ref: int, document: bytes) -> None:
    descriptor = sealed_memfd("test", document)
    running.monitor.send(MapRequest(ref=ref), [descriptor])
    os.close(descriptor)


def take(running: Running, count: int) -> dict[int, Message]:
    """Return the next `count` answers by the reference of their request."""
    answers: dict[int, Message] = {}
    while len(answers) < count:
        message, descriptors = running.receive()
        for descriptor in descriptors:
            os.close(descriptor)
        assert isinstance(message, Mapped | NotMapped | StillMapped | NoLongerMapped), message
        assert message.ref not in answers
        answers[message.ref] = message
    return answers


def in_the_mapper(site: Site, scenario: Callable[[Running, RelaySide], T]) -> T:
    """Return the result of `scenario` with a mapper that runs as the account `nobody`."""

    def run() -> T:
        relay = RelaySide(now=time.time())
        running = Running(relay, mapping_path=str(site.mapping), network=True, programs=True)
        running.ready()
        try:
            return scenario(running, relay)
        finally:
            site.go()
            running.end()

    return as_nobody(run)


def test_the_numbers_leave_room_for_those_whose_mapping_is_quick() -> None:
    at_once = MAX_SLOW + MAX_RECHECK_THREADS + MAX_RECHECKS_WAITING
    assert at_once < MAX_MAPPING
    assert MAX_SLOW < MAX_MAPPING_THREADS
    assert MAX_AT_ONE < MAX_SLOW


def test_a_slow_callout_delays_nobody_elses_start(site: Site) -> None:
    def scenario(running: Running, relay: RelaySide) -> tuple[dict[int, Message], dict[int, Message], int]:
        for ref in range(12):
            start(running, relay, ref, f"person{ref}@elsewhere.example")
        site.wait_for(4)
        start(running, relay, 99, "quick@example.edu")
        first, at_once = take(running, 1), site.running()
        site.go()
        return first, take(running, 12), at_once

    first, rest, at_once = in_the_mapper(site, scenario)
    assert [(ref, one.local_user) for ref, one in first.items() if isinstance(one, Mapped)] == [(99, "quick")]
    assert at_once == 4
    assert {one.local_user for one in rest.values() if isinstance(one, Mapped)} == {"slow"}
    assert len(rest) == 12


def test_people_beyond_what_may_wait_are_told_at_once_and_the_quick_go_through(site: Site) -> None:
    """Forty-five people mapped by a callout that doesn't answer, and ten mapped by a rule."""

    def scenario(running: Running, relay: RelaySide) -> tuple[dict[int, Message], dict[int, Message]]:
        for ref in range(45):
            start(running, relay, ref, f"person{ref}@elsewhere.example")
        for ref in range(100, 110):
            start(running, relay, ref, f"quick{ref}@example.edu")
        before = take(running, 45 - MAX_AT_ONE + 10)
        site.go()
        return before, take(running, MAX_AT_ONE)

    before, after = in_the_mapper(site, scenario)
    mapped = {ref: one.local_user for ref, one in before.items() if isinstance(one, Mapped)}
    assert mapped == {ref: f"quick{ref}" for ref in range(100, 110)}
    busy = [one for one in before.values() if isinstance(one, NotMapped)]
    assert {one.code for one in busy} == {"MAPPER_UNAVAILABLE"}, "the relay asks again, and no later rule decides"
    assert all("people wait for one" in one.detail for one in busy)
    assert {one.local_user for one in after.values() if isinstance(one, Mapped)} == {"slow"}
    assert len(after) == MAX_AT_ONE


def test_rechecks_that_are_slow_keep_no_start_waiting_and_are_put_off(site: Site) -> None:
    """Forty re-checks by a callout that doesn't answer; then starts by the same callout, and by a rule."""
    under_way = MAX_RECHECK_THREADS + MAX_RECHECKS_WAITING

    def scenario(running: Running, relay: RelaySide) -> tuple[dict[int, Message], dict[int, Message], int]:
        for ref in range(40):
            recheck(running, relay, ref, f"person{ref}@elsewhere.example")
        put_off = take(running, 40 - under_way)
        site.wait_for(2)
        for ref in (100, 101):
            start(running, relay, ref, f"person{ref}@elsewhere.example")
        site.wait_for(4)  # two re-checks and two starts: half of the places are the starts'
        start(running, relay, 200, "quick@example.edu")
        quick, at_once = take(running, 1), site.running()
        site.go()
        return put_off | quick, take(running, under_way + 2), at_once

    before, after, at_once = in_the_mapper(site, scenario)
    put_off = [one for one in before.values() if isinstance(one, NoLongerMapped)]
    assert len(put_off) == 40 - under_way
    assert {one.code for one in put_off} == {"MAPPER_UNAVAILABLE"}, "which ends nothing that runs"
    assert isinstance(before[200], Mapped)
    assert at_once == 4
    assert all(isinstance(after[ref], Mapped) for ref in (100, 101))
    still = [one.local_user for one in after.values() if isinstance(one, StillMapped)]
    assert still == ["slow"] * under_way


# --- with the real monitor --------------------------------------------------------------------------------


class RealMapper(MonitorRun):
    """A monitor with the real mapper; the test plays the manager alone."""

    def __init__(self, site: Site, relay: RelaySide) -> None:
        super().__init__(caps=Caps(start_timeout_s=120.0, stop_grace_s=1.0))
        interpreter = self.root / "python"
        lines = interpreter.read_text().splitlines()
        own = [
            f'mep.mapper) exec {sys.executable} "$@" ;;' if line.startswith("mep.mapper)") else line for line in lines
        ]
        interpreter.write_text("\n".join(own) + "\n")
        (self.root / "unseal.key").chmod(0o600)
        (self.root / "unseal.key").write_bytes(relay.unseal_key.private_bytes_raw())
        section = dataclasses.replace(
            self.resolved.mapper, endpoint_id=ENDPOINT, relay_signing_key=relay.public_key.hex(),
            mapping_path=str(site.mapping), network=True, programs=True,
        )  # fmt: skip
        self.resolved = dataclasses.replace(self.resolved, mapper=section)


@pytest.mark.root
def test_with_the_real_monitor_the_quick_go_through_past_forty_five_slow_people(site: Site) -> None:
    with RealMapper(site, relay := RelaySide(now=time.time())) as run:
        manager = run.puppet("manager")
        manager.wait_at_most(60)
        manager.send(ManagerReady(version="test"))
        relay.epoch = manager.take(MapperEpoch)[0].epoch

        def ask_for(ref: int, username: str) -> None:
            who = IdentitySet(f"account-{ref}", (alice(id=str(uuid.UUID(int=ref)), username=username),))
            ask(manager, ref, relay.document(identity_set=who))

        def answers(count: int) -> dict[int, StartAnswered]:
            taken = [manager.take(StartAnswered)[0] for _ in range(count)]
            return {one.ref: one for one in taken}

        for ref in range(45):
            ask_for(ref, f"person{ref}@elsewhere.example")
        for ref in range(100, 110):
            ask_for(ref, f"meptest-no-{ref}@example.edu")
        before = answers(45 - MAX_AT_ONE + 10)
        site.go()
        after = answers(MAX_AT_ONE)
    # None of these names has an account, and a keeper refuses each mapped person for that reason.
    assert {ref for ref, one in before.items() if one.code == "ACCOUNT_REFUSED"} == set(range(100, 110))
    busy = [one for one in before.values() if one.code == "MAPPER_UNAVAILABLE"]
    assert len(busy) == 45 - MAX_AT_ONE
    assert {one.outcome for one in busy} == {StartOutcome.UNAVAILABLE}, "the relay asks again"
    assert {one.code for one in after.values()} == {"ACCOUNT_REFUSED"}
    assert len(after) == MAX_AT_ONE
