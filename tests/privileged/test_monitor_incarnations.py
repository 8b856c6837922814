"""The monitor names the process in each message, and a late message about an earlier process touches no other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from mep.boundary.messages import (
    EndpointEnded,
    EndpointRevoked,
    EndpointRunning,
    ManagerReady,
    MapRequest,
    NoLongerMapped,
    StartAnswered,
    StillMapped,
)
from tests.support.accounts import LocalAccount, account
from tests.support.monitor import MonitorRun, Puppet, ask, gone, map_next, new_uep_id, running_monitor, start_as
from tests.support.waiting import until

FIRST, SECOND = b"the first one...", b"the second one.."
CODE = "IDENTITY_NOT_MAPPED"


@pytest.fixture
def alice() -> Iterator[LocalAccount]:
    with account() as made:
        yield made


def kill(run: MonitorRun, uep_id: str) -> None:
    os.kill(run.record(uep_id)["uep_pid"], 9)


def two_in_turn(run: MonitorRun, manager: Puppet, mapper: Puppet, user: str) -> str:
    """Have a process of one user endpoint killed and another follow it; return the id."""
    uep_id, first = start_as(manager, mapper, user, incarnation=FIRST)
    assert (first.outcome, first.incarnation) == ("started", FIRST)
    kill(run, uep_id)
    ended = manager.take(EndpointEnded)[0]
    assert (ended.uep_id, ended.incarnation) == (uep_id, FIRST)
    _, second = start_as(manager, mapper, user, ref=2, uep_id=uep_id, incarnation=SECOND)
    assert (second.outcome, second.incarnation) == ("started", SECOND)
    return uep_id


def recheck(manager: Puppet, mapper: Puppet, ref: int) -> int:
    """Have a re-check asked of the mapper; return its number there."""
    ask(manager, ref)
    request, descriptors = mapper.take(MapRequest)
    os.close(descriptors[0])
    return int(request.ref)


def runs(run: MonitorRun, uep_id: str) -> bool:
    record = run.record(uep_id)
    return not gone(record["uep_pid"], record["uep_start"])


def test_a_late_refusal_of_an_earlier_process_stops_no_other(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id = two_in_turn(run, manager, mapper, alice.name)
        assert run.record(uep_id)["incarnation"] == SECOND.hex()
        late = recheck(manager, mapper, 3)
        mapper.send(NoLongerMapped(late, uep_id, CODE, "No.", "", "c", incarnation=FIRST))
        assert manager.take(StartAnswered)[0].ref == 3
        late = recheck(manager, mapper, 4)
        mapper.send(StillMapped(late, uep_id, "somebody-else", "c", incarnation=FIRST))
        assert manager.take(StartAnswered)[0].ref == 4
        until("logged", lambda: run.log_text().count("a re-check of an earlier process was dropped") == 2)
        assert runs(run, uep_id)
        until("shown as running", lambda: run.status()["user_endpoints"][0]["state"] == "running")
        now = recheck(manager, mapper, 5)
        mapper.send(NoLongerMapped(now, uep_id, CODE, "No.", "", "c", incarnation=SECOND))
        assert manager.take(EndpointRevoked)[0].incarnation == SECOND
        assert manager.take(EndpointEnded)[0].incarnation == SECOND


def test_a_second_request_for_a_process_on_its_way_is_answered_with_that_process(alice: LocalAccount) -> None:
    with running_monitor() as (_, manager, mapper):
        uep_id = new_uep_id()
        ask(manager, 1)
        map_next(mapper, alice.name, uep_id=uep_id, incarnation=FIRST)
        ask(manager, 2)
        map_next(mapper, alice.name, uep_id=uep_id, incarnation=SECOND)
        answers = [manager.take(StartAnswered)[0] for _ in range(2)]
        assert {one.ref for one in answers} == {1, 2}
        assert {one.incarnation for one in answers} == {FIRST}


def test_a_new_monitor_knows_which_process_it_adopts(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id = two_in_turn(run, manager, mapper, alice.name)
        run.stop(signal.SIGKILL)
        run.start()
        manager, mapper = run.ready()
        assert manager.take(EndpointRunning)[0] == EndpointRunning(uep_id, SECOND)
        late = recheck(manager, mapper, 1)
        mapper.send(NoLongerMapped(late, uep_id, CODE, "No.", "", "c", incarnation=FIRST))
        assert manager.take(StartAnswered)[0].ref == 1
        assert runs(run, uep_id)
        kill(run, uep_id)
        assert manager.take(EndpointEnded)[0].incarnation == SECOND


def test_a_manager_that_did_not_ask_is_told_what_runs(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        ask(manager, 1)
        uep_id = map_next(mapper, alice.name, incarnation=FIRST, delay_s=2.0)
        until("keeper", lambda: run.record(uep_id))
        manager.kill()
        again = run.puppet("manager")
        again.send(ManagerReady(version="t"))
        assert again.take(EndpointRunning)[0] == EndpointRunning(uep_id, FIRST)
