"""A start's way through its states: one answer to each requester, whatever happens, and by the table alone."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mep.boundary import messages as m
from mep.boundary.channel import Channel
from mep.boundary.memfd import sealed_memfd
from mep.root.monitor.start import TABLE, Start, Starts, StartState, StartVerdict
from mep.root.monitor.start_requests import StartRequests
from mep.root.monitor.user_endpoints import TABLE as UEP_TABLE
from mep.root.monitor.user_endpoints import RunningEndpoint, UepEvent, UepPhase
from tests.support.monitor_parts import PaperKeepers, Parts, received

IDS = [f"00000000-0000-4000-8000-{number:012}" for number in range(10)]


class Site:
    """Start requests between a manager and a mapper that the test plays."""

    def __init__(self, parts: Parts, slots: int) -> None:
        self.parts = parts
        resolved = parts.configuration.resolved
        caps = replace(resolved.caps, max_starting=slots, start_timeout_s=20.0)
        parts.configuration.resolved = replace(resolved, caps=caps)
        self.manager: Channel = parts.serve(parts.manager)
        self.mapper: Channel = parts.serve(parts.mapper)
        self.keepers = PaperKeepers(parts)
        self.starts: StartRequests = parts.starts(self.keepers)
        self.answers: dict[int, str] = {}
        self.begun: set[int] = set()

    def ask(self, ref: int) -> None:
        self.starts.request(ref, sealed_memfd("request", b"request"))
        self.parts.pass_time(0.0)

    def mapping(self) -> list[int]:
        """Return the refs of the requests that the mapper got since."""
        got = received(self.mapper)
        for _, descriptors in got:
            os.close(descriptors[0])
        return [message.ref for message, _ in got if isinstance(message, m.MapRequest)]

    def mapped(self, ref: int, uep: int, user: str = "alice") -> None:
        answer = m.Mapped(ref, IDS[uep], user, "{}", f"c-{ref}", bytes(32), bytes(16), 0)
        self.starts.mapped(answer, sealed_memfd("verified", b"{}"))

    def start(self, ref: int, uep: int, user: str = "alice") -> None:
        self.ask(ref)
        (ours,) = self.mapping()
        self.mapped(ours, uep, user)
        self.parts.pass_time(0.0)

    def told(self) -> dict[int, str]:
        """Return the outcome for each requester that was answered, and fail if one was answered twice."""
        for message, _ in received(self.manager):
            if isinstance(message, m.StartBegun):
                self.begun.add(message.ref)
            elif isinstance(message, m.StartAnswered):
                assert message.ref not in self.answers
                self.answers[message.ref] = message.outcome
        return self.answers


@pytest.fixture
def parts(tmp_path: pathlib.Path) -> Iterator[Parts]:
    with Parts(tmp_path) as made:
        yield made


@pytest.fixture
def site(parts: Parts) -> Site:
    return Site(parts, slots=2)


def test_the_tables_lead_to_an_end_and_not_out_of_it() -> None:
    assert set(TABLE) == set(StartState)
    assert not TABLE[StartState.DONE].then
    assert all(StartState.DONE in row.then for state, row in TABLE.items() if state is not StartState.DONE)
    assert set().union(*(row.then for row in TABLE.values())) == set(StartState) - {StartState.RECEIVED}
    lacking = {(phase, event) for phase in UepPhase for event in UepEvent} - set(UEP_TABLE)
    assert lacking == {(UepPhase.RUNNING, UepEvent.READY), (UepPhase.STOPPING, UepEvent.READY)}
    assert all(then is UepPhase.ENDED for (_, event), then in UEP_TABLE.items() if event is UepEvent.REPORTED)


def test_a_user_endpoint_is_shown_as_draining_while_it_runs() -> None:
    one = RunningEndpoint("uep", "alice", "c-1", 7, None, phase=UepPhase.RUNNING, draining=True)
    assert one.public()["state"] == "draining"
    one.take(UepEvent.STOP)
    assert one.public()["state"] == "stopping"


@pytest.mark.parametrize("state", [StartState.PARKED, StartState.IN_KEEPER, StartState.RECEIVED])
def test_a_step_that_the_table_lacks_is_refused(state: StartState) -> None:
    starts, start = Starts(), Start(1, [1], -1, 0)
    starts.enter(start, StartState.WAITING)
    with pytest.raises(ValueError, match="waiting for the mapper"):
        starts.enter(start, state)
    assert list(starts) == [start] and start.state is StartState.WAITING


def test_what_finds_no_slot_is_to_be_asked_for_later(site: Site) -> None:
    """No account has more than half of the slots, or the last one besides another."""
    for ref, user in enumerate(["alice", "alice", "bob", "carol"], start=1):
        site.start(ref, ref, user)
    assert site.keepers.forked == [IDS[1], IDS[3]]
    assert site.told() == {2: "try_later", 4: "try_later"}
    assert site.begun == {1, 3}
    site.parts.endpoints[IDS[1]].take(UepEvent.READY)
    site.starts.finish_from_keeper(IDS[1], StartVerdict(m.StartOutcome.STARTED))
    site.start(5, 2, "alice")
    assert site.keepers.forked == [IDS[1], IDS[3], IDS[2]]


def test_refused_forks_are_answered_one_after_the_other(site: Site) -> None:
    site.keepers.refusal = StartVerdict(m.StartOutcome.UNAVAILABLE, "SITE_BUSY", "full")
    for ref in range(1, 5):
        site.start(ref, ref)
    assert site.told() == dict.fromkeys(range(1, 5), "unavailable")
    assert not list(site.starts._starts)


def test_a_second_request_for_one_user_endpoint_gets_the_same_answer(site: Site) -> None:
    for ref in (1, 2, 3):
        site.start(ref, 5)
    assert site.told() == {}
    site.parts.endpoints[IDS[5]].take(UepEvent.READY)
    site.starts.finish_from_keeper(IDS[5], StartVerdict(m.StartOutcome.STARTED))
    assert site.told() == dict.fromkeys((1, 2, 3), "started")
    site.start(4, 5)
    assert site.told()[4] == "already_running"
    assert site.keepers.forked == [IDS[5]]


def test_one_waits_for_the_end_of_the_process_before_it(site: Site) -> None:
    ending = site.parts.running(IDS[1])
    ending.take(UepEvent.STOP)
    site.start(1, 1)
    assert site.keepers.forked == [] and site.told() == {}
    del site.parts.endpoints[IDS[1]]
    site.starts.endpoint_gone(IDS[1])
    site.parts.pass_time(0.0)
    assert site.keepers.forked == [IDS[1]]


def test_a_lost_mapper_answers_what_it_had_and_what_waited_for_it(site: Site) -> None:
    site.start(1, 1)
    for ref in (2, 3):
        site.ask(ref)
    site.starts.mapper_lost()
    assert site.told() == {2: "unavailable", 3: "unavailable"}
    site.starts.finish_from_keeper(IDS[1], StartVerdict(m.StartOutcome.STARTED))
    assert site.told()[1] == "started"


def test_of_a_lost_manager_only_starts_with_a_keeper_are_left(site: Site) -> None:
    site.start(1, 1)
    site.parts.running(IDS[2]).take(UepEvent.STOP)
    site.start(2, 2)
    site.ask(3)
    site.starts.manager_lost()
    assert [one.state for one in site.starts._starts] == [StartState.IN_KEEPER]
    (abandoned,) = site.mapping()
    site.mapped(abandoned, 3)  # the mapper answers, and nothing comes of it
    site.parts.pass_time(0.0)
    assert site.keepers.forked == [IDS[1]] and site.told() == {}


def test_an_overdue_start_is_refused_in_each_state_that_has_a_limit(site: Site) -> None:
    site.start(1, 1)
    site.parts.running(IDS[4]).take(UepEvent.STOP)
    site.start(4, 4)
    site.ask(3)
    site.parts.pass_time(21.0)
    assert site.told() == {3: "unavailable", 4: "unavailable"}
    assert site.parts.mapper.child is not None and "has not answered" in site.parts.mapper.child.fault


def test_an_endpoint_that_stops_refuses_what_has_no_keeper(site: Site) -> None:
    site.start(1, 1)
    site.ask(3)
    site.starts.close("It stops.")
    site.ask(4)
    assert site.told() == {3: "unavailable", 4: "unavailable"}
