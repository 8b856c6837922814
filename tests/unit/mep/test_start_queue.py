"""The manager's queue of starts: fair between people, no longer than the slots need, and with true positions."""

from __future__ import annotations

import uuid

import pytest

from mep.manager.start_queue import MAX_SENT, MAX_WAIT_S, NEVER, POSITIONS_S, SLOW_S, StartQueue
from mep_wire import messages
from mep_wire.identity import IdentitySet
from mep_wire.start_request import StartRequest, encode_start


def start(person: str, uep_id: str = "") -> messages.SignedStart:
    request = StartRequest(
        endpoint_id="e", uep_id=uep_id, identity_set=IdentitySet(person, ()), user_endpoint_config={},
        user_runtime={}, issued_at=0.0, expires_at=1.0, nonce=b"", epoch=b"", sealed_join_token=b"",
        correlation_id="c",
    )  # fmt: skip
    return messages.SignedStart(uep_id=uep_id or str(uuid.uuid4()), request=encode_start(request), signature=b"")


class Monitor:
    """What the queue sends is begun until it is answered."""

    def __init__(self, slots: int) -> None:
        self.queue, self.now, self.refs = StartQueue(slots), 100.0, 0
        self.has: dict[int, str] = {}

    def ask(self, *people: str) -> None:
        for person in people:
            self.queue.add(start(person), self.now)

    def sent(self, *, begun: bool = True) -> list[str]:
        """Send what may be sent; return its people."""
        found = []
        while (one := self.queue.take(self.now)) is not None:
            self.refs += 1
            self.queue.sent(self.refs, one, self.now)
            self.has[self.refs] = one.person
            if begun:
                self.queue.begun(self.refs)
            found.append(one.person)
        return found

    def answer(self, person: str) -> None:
        ref = next(ref for ref, one in self.has.items() if one == person)
        del self.has[ref]
        self.queue.answered(ref)


def test_a_burst_of_one_person_delays_another_by_one_start() -> None:
    monitor = Monitor(slots=1)
    monitor.ask(*["alice"] * 5, "bob")
    order = monitor.sent()
    for _ in range(5):
        monitor.answer(order[-1])
        order += monitor.sent()
    assert order == ["alice", "bob", "alice", "alice", "alice", "alice"]


@pytest.mark.parametrize(("slots", "alices", "bobs"), [(1, 1, 0), (2, 1, 1), (3, 1, 1), (4, 2, 1), (16, 8, 2)])
def test_no_person_has_more_than_half_of_the_slots_nor_the_last_besides_another(
    slots: int, alices: int, bobs: int
) -> None:
    monitor = Monitor(slots)
    monitor.ask(*["alice"] * 20)
    assert monitor.sent() == ["alice"] * alices
    monitor.ask("bob", "bob")
    assert monitor.sent() == ["bob"] * bobs


def test_slow_mappings_do_not_keep_back_quick_ones() -> None:
    monitor = Monitor(slots=2)
    monitor.ask("slow-1", "slow-2", "quick")
    assert monitor.sent(begun=False) == ["slow-1", "slow-2"]
    assert monitor.queue.next_at(monitor.now) == monitor.now + min(SLOW_S, POSITIONS_S)
    monitor.now += SLOW_S
    assert monitor.sent() == ["quick"]


def test_the_monitor_never_has_more_than_the_mapper_takes() -> None:
    monitor = Monitor(slots=4)
    for number in range(100):
        monitor.ask(f"slow-{number}")
        monitor.sent(begun=False)
        monitor.now += SLOW_S / 2
    assert len(monitor.has) == MAX_SENT


def test_positions_are_told_in_the_order_of_the_turns_and_when_halved() -> None:
    monitor = Monitor(slots=1)
    for number, person in enumerate(["alice"] * 5 + ["bob"]):
        monitor.queue.add(start(person, str(number)), monitor.now)
    assert monitor.sent() == ["alice"]
    assert monitor.queue.positions(monitor.now) == []
    monitor.now += POSITIONS_S
    told = {one.uep_id: position for one, position in monitor.queue.positions(monitor.now)}
    assert told == {"5": 1, "1": 2, "2": 3, "3": 4, "4": 5}
    for _ in range(2):
        monitor.answer(next(iter(monitor.has.values())))
        monitor.sent()
    monitor.now += POSITIONS_S
    told = {one.uep_id: position for one, position in monitor.queue.positions(monitor.now)}
    assert told == {"2": 1, "3": 2}


def test_a_newer_request_for_the_same_user_endpoint_takes_over_the_turn() -> None:
    monitor = Monitor(slots=1)
    first, again = start("alice", "one"), start("alice", "one")
    monitor.ask("bob")
    assert monitor.sent() == ["bob"]
    for request in (first, start("alice", "two"), again):
        monitor.queue.add(request, monitor.now)
    assert len(monitor.queue) == 2
    monitor.answer("bob")
    taken = monitor.queue.take(monitor.now)
    assert taken is not None and taken.start is again


def test_what_waits_too_long_is_given_back() -> None:
    monitor = Monitor(slots=1)
    monitor.ask("alice")
    assert monitor.sent() == ["alice"]
    monitor.ask("bob")
    assert monitor.queue.overdue(monitor.now + MAX_WAIT_S - 1) == []
    assert len(monitor.queue.overdue(monitor.now + MAX_WAIT_S)) == 1
    assert monitor.queue.next_at(monitor.now) == NEVER


def test_a_request_that_cannot_be_read_waits_like_any_other() -> None:
    monitor = Monitor(slots=1)
    monitor.queue.add(messages.SignedStart(uep_id="x", request=b"\xc1", signature=b""), monitor.now)
    assert monitor.sent() == [""]
