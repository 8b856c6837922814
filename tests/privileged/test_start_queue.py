"""Starts that wait for others: each person sees their place in the queue, and one person's burst delays no one else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from mep.boundary.messages import StartAnswered
from mep.boundary.resolved_config import Caps
from mep_wire.errors import TaskNotFound
from tests.support.accounts import LocalAccount, account
from tests.support.campus import Campus, make_campus
from tests.support.monitor import ask, map_next, running_monitor
from tests.support.waiting import until

WAIT_S = 60
TEMPLATE = """\
endpoint_setup: sleep {{ nap | default(0) }}
engine: {type: ThreadPoolEngine, max_workers: 1}
# WORKPLACE
"""


@pytest.fixture
def people() -> Iterator[tuple[LocalAccount, LocalAccount]]:
    with account() as alice, account() as bob:
        yield alice, bob


def test_the_monitor_begins_what_it_has_slots_for(people: tuple[LocalAccount, LocalAccount]) -> None:
    """The manager has the queue. One that sends more all the same has it asked for later."""
    alice, bob = people
    caps = Caps(start_timeout_s=30.0, stop_grace_s=1.0, max_starting=4)
    with running_monitor(caps=caps) as (_run, manager, mapper):
        for ref, who in enumerate([alice, alice, alice, bob, bob, bob], start=1):
            ask(manager, ref)
            map_next(mapper, who.name, mode="silent")
        answered = {one.ref: one.outcome for one in (manager.take(StartAnswered)[0] for _ in range(3))}
        # Alice's third; Bob's second would take the last slot.
        assert answered == dict.fromkeys((3, 5, 6), "try_later")


def asked(campus: Campus, who: str, future: Any) -> dict[str, Any]:
    """Return the relay's record of a task, empty before it has one."""
    try:
        return dict(campus.client(who).get_task(future.task_id)) if future.task_id else {}
    except TaskNotFound:
        return {}


@pytest.fixture(scope="module")
def campus() -> Iterator[Campus]:
    with make_campus("multi", "queue", TEMPLATE) as made:
        made.endpoint.write("user_config_schema.json", {"type": "object", "properties": {"nap": {"type": "integer"}}})
        made.endpoint.register_again()
        made.endpoint.add_config("caps: {max_starting: 1}\n")
        made.endpoint.start()
        yield made


def test_a_person_reads_its_place_where_the_task_is_asked_about(campus: Campus) -> None:
    with campus.executor("alice", nap=8) as one, campus.executor("bob") as other:
        first = one.submit(pow, 2, 3)
        until("a start request", lambda: asked(campus, "alice", first))
        time.sleep(1.0)  # until the one start that may be under way is
        second = other.submit(pow, 2, 4)
        place = "The site starts few user endpoints at once; yours is number 1 in the queue."
        until("its place", lambda: asked(campus, "bob", second).get("reason") == place)
        assert second.result(timeout=WAIT_S) == 16
        assert asked(campus, "bob", second).get("reason") is None
