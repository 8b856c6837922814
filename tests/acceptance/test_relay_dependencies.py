"""Tasks that wait for others, on the wire: what a user endpoint is sent, and what an older one is not."""

from __future__ import annotations

from typing import Any

import pytest

from mep_wire.ids import uuid7
from tests.support.fake_peer import FakeManager, FakeUep
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.waiting import until


class Chain:
    """One person's tasks at one endpoint, with a user endpoint that ends them on order."""

    def __init__(self, relay: RelayProcess, person: Person) -> None:
        self.person, self.lab, self.function = person, FakeManager(relay, person.token).hello(), person.function()

    def submit(self, *waits_for: str, **fields: Any) -> tuple[str, Any]:
        """Submit a task that waits for these; return its id and the answer."""
        task_id = str(uuid7())
        more = {"depends_on": {task_id: list(waits_for)}} if waits_for else {}
        ids = {self.function: [task_id]}
        told = self.person.submit(self.lab.endpoint_id, self.function, ["p"], task_ids=ids, **more, **fields)
        return task_id, told


@pytest.fixture
def chain(relay: RelayProcess, alice: Person, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setattr(FakeUep, "takes_inputs", True)
    return Chain(relay, alice)


def test_a_task_comes_with_the_results_in_order_and_again_after_a_cut(chain: Chain) -> None:
    one, _ = chain.submit()
    two, _ = chain.submit()
    last, _ = chain.submit(two, one, one)
    uep = chain.lab.start()
    uep.credit(10)
    first, second = uep.take(2)
    assert chain.person.task(last)["code"] == "WAITS_FOR_TASK"
    uep.finish([second], b"of two")
    uep.finish([first], b"of one")
    (task,) = uep.take(1)
    assert (task.task_id, task.payload, task.inputs) == (last, b"p", [b"of two", b"of one", b"of one"])
    uep.connect()  # the link has broken, and it does not have the task
    uep.hello([])
    uep.credit(10)
    (again,) = uep.take(1)
    assert (again.task_id, again.inputs) == (last, task.inputs)
    uep.finish([again])
    until("its end", lambda: chain.person.task(last)["status"] == "success")


def test_an_older_endpoint_is_not_said_to_hold_tasks(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    _, told = chain.submit()
    assert not told.get("holds_tasks")  # its manager has not said that its processes take results


def test_an_older_process_is_never_sent_a_task_without_its_inputs(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeUep, "takes_inputs", False)
    one, _ = chain.submit()
    waits, _ = chain.submit(one)
    after, _ = chain.submit(waits)
    uep = chain.lab.start()
    uep.credit(10)
    uep.finish(uep.take(1), b"of one")
    until("its end", lambda: chain.person.task(waits).get("code") == "DEPENDENCY_REFUSED")
    until("its end", lambda: chain.person.task(after).get("code") == "DEPENDENCY_FAILED")
    plain, _ = chain.submit()
    assert [task.task_id for task in uep.take(1)] == [plain]


def test_a_cancelled_task_ends_those_that_wait_for_it_without_any_process(chain: Chain) -> None:
    one, _ = chain.submit()
    two, _ = chain.submit(one)
    three, _ = chain.submit(two)
    assert chain.person.ok("POST", "/v3/tasks/cancel", {"task_ids": [one]})["cancelled"] == [one]
    for task_id in (two, three):
        until("its end", lambda: chain.person.task(task_id).get("code") == "DEPENDENCY_FAILED")  # noqa: B023
    assert "it was cancelled" in chain.person.task(two)["reason"]


def test_what_is_refused(chain: Chain, relay: RelayProcess) -> None:
    one, _ = chain.submit()
    other = Chain(relay, Person(relay, "mallory"))
    elsewhere = Chain(relay, chain.person)
    for who, words in ((other, "you have no task of this id"), (elsewhere, "it is at another endpoint")):
        task_id = str(uuid7())
        body = {
            "tasks": {who.function: ["p"]},
            "task_ids": {who.function: [task_id]},
            "depends_on": {task_id: [one]},
        }
        text = who.person.refused(
            409, "DEPENDENCY_REFUSED", "POST", f"/v3/endpoints/{who.lab.endpoint_id}/submit", body
        )
        assert words in text
