"""Attempts, deadlines, priority and lasting cancellations at the relay: a real one, and peers that a test plays."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mep_wire import PROTOCOL_VERSION, messages
from tests.support.fake_peer import FakeManager, FakeUep
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.relay_steps import running_uep, status_of
from tests.support.waiting import until

WAIT_S = 60.0


def begun(
    alice: Person, lab: FakeManager, function: str, count: int = 1, **options: Any
) -> tuple[Any, FakeUep, list[messages.TaskItem]]:
    """Submit tasks, and have them begun by a user endpoint."""
    answer = alice.submit(lab.endpoint_id, function, ["p"] * count, **options)
    uep = lab.start()
    uep.credit(count)
    tasks = uep.take(count)
    uep.send(messages.Started(rows=[task.row for task in tasks]))
    until("tasks that run", lambda: status_of(alice, answer) == ["running"] * count, WAIT_S)
    return answer, uep, tasks


def the_end(alice: Person, answer: Any, number: int = 0) -> dict[str, Any]:
    """Wait for the end of one of a submission's tasks and return its status."""
    task_id = [task_id for ids in answer["tasks"].values() for task_id in ids][number]
    until("the task's end", lambda: "completion_t" in alice.task(task_id), WAIT_S)
    found: dict[str, Any] = alice.task(task_id)
    return found


# --- attempts ---------------------------------------------------------------------------------------


def test_a_loss_that_is_told_is_charged_once_and_the_task_comes_again(
    alice: Person, lab: FakeManager, function: str
) -> None:
    answer, uep, (task,) = begun(alice, lab, function, max_attempts=3)
    assert (task.attempt, task.max_attempts) == (1, 3)
    uep.send(messages.Lost(rows=[task.row], attempts=[1]))
    uep.send(messages.Lost(rows=[task.row], attempts=[1]))
    known = uep.expect(messages.LossesDurable)
    assert (known.rows, known.attempts) == ([task.row], [1])
    uep.credit(1)
    (again,) = uep.take(1)
    assert (again.row, again.attempt) == (task.row, 2)
    uep.send(messages.Started(rows=[task.row]))
    until("tasks that run", lambda: status_of(alice, answer) == ["running"], WAIT_S)
    uep.send(messages.Lost(rows=[task.row], attempts=[1]))  # late: attempt 2 runs
    uep.expect(messages.LossesDurable)
    uep.expect(messages.LossesDurable)
    assert status_of(alice, answer) == ["running"]
    uep.finish([again])
    assert status_of(alice, answer) == ["success"]


def test_what_had_begun_in_a_process_that_is_gone_runs_again_while_it_may(
    alice: Person, lab: FakeManager, function: str
) -> None:
    answer, uep, tasks = begun(alice, lab, function, count=2, max_attempts=2)
    for attempt in (1, 2):
        assert {task.attempt for task in tasks} == {attempt}
        uep.close()
        lab.ended(uep.uep_id, text="it was killed by SIGKILL.")
        uep = lab.start()
        if attempt == 1:
            uep.credit(2)
            tasks = uep.take(2)
            uep.send(messages.Started(rows=[task.row for task in tasks]))
            until("tasks that run", lambda: status_of(alice, answer) == ["running"] * 2, WAIT_S)
    end = the_end(alice, answer)
    assert (end["status"], end["code"]) == ("failed", "USER_ENDPOINT_LOST")
    assert "it was killed by SIGKILL." in end["reason"]
    assert end["reason"].endswith("(attempt 2 of 2)")


def test_what_had_not_begun_is_not_charged(alice: Person, lab: FakeManager, function: str) -> None:
    alice.submit(lab.endpoint_id, function, ["p"])
    uep = lab.start()
    uep.credit(1)
    (task,) = uep.take(1)
    uep.send(messages.Returned(rows=[task.row]))
    uep.credit(1)
    assert uep.take(1)[0].attempt == 1
    uep.close()
    lab.ended(uep.uep_id)
    uep = lab.start()
    uep.credit(1)
    assert uep.take(1)[0].attempt == 1


def joined(lab: FakeManager, default: int, most: int) -> FakeUep:
    request, token = lab.take_start()
    lab.answer(request.uep_id, "started")
    uep = FakeUep(lab, request, token)
    uep.send(
        messages.Join(
            protocol=PROTOCOL_VERSION,
            uep_id=uep.uep_id,
            token=token,
            default_attempts=default,
            most_attempts=most,
        )
    )
    uep.expect(messages.UepWelcome)
    return uep


@pytest.mark.parametrize(("asked", "default", "most", "again"), [(None, 2, 0, True), (5, 1, 1, False)])
def test_the_endpoints_default_and_limit_count_for_what_dies_with_its_process(
    alice: Person, lab: FakeManager, function: str, asked: int | None, default: int, most: int, again: bool
) -> None:
    answer, uep, _tasks = begun(alice, lab, function, max_attempts=asked)
    uep.close()
    lab.ended(uep.uep_id)
    uep = joined(lab, default, most)
    if again:
        uep.credit(1)
        assert uep.take(1)[0].attempt == 2
    else:
        assert the_end(alice, answer)["reason"].endswith("(attempt 1 of 1)")


def test_a_cancelled_task_is_not_run_again(alice: Person, lab: FakeManager, function: str) -> None:
    answer, uep, (task,) = begun(alice, lab, function, max_attempts=5)
    alice.ok("POST", "/v3/tasks/cancel", {"task_ids": [task.task_id]})
    uep.send(messages.Lost(rows=[task.row], attempts=[1]))
    assert the_end(alice, answer)["status"] == "cancelled"


def test_a_cancellation_is_said_again_where_the_link_died_before_it_came(
    relay: RelayProcess, alice: Person, lab: FakeManager, function: str
) -> None:
    answer, uep, (task,) = begun(alice, lab, function)
    told = alice.ok("POST", "/v3/tasks/cancel", {"task_ids": [task.task_id]})
    assert told["asked"] == [task.task_id]
    uep.close()  # the relay's message is lost with the link, or was never read
    relay.kill()
    relay.start()
    uep.connect()
    uep.hello([task.row])
    assert uep.expect(messages.CancelTasks).rows == [task.row]
    uep.finish([task], b"", code="TASK_CANCELLED", text="The task was cancelled.")
    assert status_of(alice, answer) == ["cancelled"]


def test_a_cancelled_task_that_is_given_back_ends(alice: Person, lab: FakeManager, function: str) -> None:
    answer, uep = running_uep(alice, lab, function)
    uep.credit(1)
    (task,) = uep.take(1)
    alice.ok("POST", "/v3/tasks/cancel", {"task_ids": [task.task_id]})
    uep.send(messages.Returned(rows=[task.row]))
    assert the_end(alice, answer)["status"] == "cancelled"


# --- deadlines --------------------------------------------------------------------------------------


def test_a_waiting_task_expires_at_its_deadline(alice: Person, lab: FakeManager, function: str) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p"], deadline_s=0.3)
    end = the_end(alice, answer)
    assert (end["status"], end["code"]) == ("expired", "TASK_EXPIRED")
    assert end["reason"] == "The task did not finish before its deadline: it was still waiting."
    assert status_of(alice, alice.submit(lab.endpoint_id, function, ["p"], deadline_s=3600)) == ["waiting-for-ep"]


def test_a_running_task_expires_is_stopped_and_its_late_result_harms_nobody(
    alice: Person, lab: FakeManager, function: str
) -> None:
    answer, uep, (task,) = begun(alice, lab, function, deadline=time.time() + 1.5)
    assert 0 < task.expires_in_s <= 1.5
    end = the_end(alice, answer)
    assert (end["status"], end["reason"]) == (
        "expired",
        "The task did not finish before its deadline: it had begun, and was stopped.",
    )
    assert uep.expect(messages.CancelTasks).rows == [task.row]
    uep.finish([task])  # it is confirmed, and not taken
    assert status_of(alice, answer) == ["expired"]
    stream = alice.stream(answer["task_group_id"])
    assert [one.code for one in stream.results(1)] == ["TASK_EXPIRED"]
    stream.close()


def test_a_task_expires_though_its_user_endpoint_never_returns_and_the_relay_was_restarted(
    relay: RelayProcess, alice: Person, lab: FakeManager, function: str
) -> None:
    answer, uep, _tasks = begun(alice, lab, function, count=2, deadline_s=4)
    uep.close()
    relay.kill()
    relay.start()
    assert the_end(alice, answer)["status"] == "expired"
    until("tasks that have expired", lambda: status_of(alice, answer) == ["expired"] * 2, WAIT_S)


def test_the_earlier_of_two_deadlines_counts(alice: Person, lab: FakeManager, function: str) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p"], deadline_s=3600, deadline=time.time() - 5)
    assert the_end(alice, answer)["status"] == "expired"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", 101),
        ("priority", 6),
        ("priority", -6),
        ("priority", "high"),
        ("deadline_s", 0),
        ("deadline", -1),
        ("deadline", 1e18),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    alice: Person, lab: FakeManager, function: str, field: str, value: object
) -> None:
    body = {"tasks": {function: ["p"]}, field: value}
    assert field in alice.refused(422, "BODY_INVALID", "POST", f"/v3/endpoints/{lab.endpoint_id}/submit", body)


# --- priority ---------------------------------------------------------------------------------------


def test_a_persons_waiting_tasks_go_by_priority(alice: Person, lab: FakeManager, function: str) -> None:
    for payload, priority in (("low", -5), ("plain", 0), ("high", 5), ("high, too", 5)):
        alice.submit(lab.endpoint_id, function, [payload], priority=priority)
    uep = lab.start()
    uep.credit(2)
    assert [(task.payload, task.priority) for task in uep.take(2)] == [(b"high", 5), (b"high, too", 5)]
    alice.submit(lab.endpoint_id, function, ["above"], priority=1)
    uep.credit(9)
    assert [task.payload for task in uep.take(3)] == [b"above", b"plain", b"low"]
