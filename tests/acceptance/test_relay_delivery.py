"""Tasks and results over the endpoint link: a real relay, and a peer that sends the test's messages."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import msgspec
import pytest
import zmq

from mep_wire import PROTOCOL_VERSION, messages
from mep_wire.limits import MAX_PAYLOAD_BYTES
from tests.support.fake_peer import FakeManager, FakeUep, Nothing
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.relay_steps import refused, running_uep, status_of
from tests.support.waiting import until

# --- tasks and results ------------------------------------------------------------------------------


def test_tasks_come_in_order_within_credit_and_functions_once(alice: Person, lab: FakeManager, function: str) -> None:
    payloads = [f"p{number}" for number in range(20)]
    alice.submit(lab.endpoint_id, function, payloads)
    uep = lab.start()
    with pytest.raises(Nothing):
        uep.take(1, wait_ms=200)
    uep.credit(3)
    tasks = uep.take(3)
    assert uep.functions == {function: b"the code"}
    uep.functions.clear()
    with pytest.raises(Nothing):
        uep.take(1, wait_ms=200)
    uep.credit(100)
    tasks += uep.take(17)
    assert [task.payload.decode() for task in tasks] == payloads
    assert uep.functions == {}
    uep.finish(tasks)


def test_everything_of_a_task_arrives(alice: Person, lab: FakeManager, function: str) -> None:
    answer = alice.submit(
        lab.endpoint_id, function, ["b64:AP8="], resource_specification={"num_nodes": 2}, walltime_s=2.5
    )
    uep = lab.start()
    uep.credit(1)
    (task,) = uep.take(1)
    assert task.task_id == answer["tasks"][function][0]
    assert (task.payload, task.function_id, task.walltime_s) == (b"\x00\xff", function, 2.5)
    assert msgspec.msgpack.decode(task.resource_spec) == {"num_nodes": 2}


def test_states_as_a_person_sees_them(alice: Person, lab: FakeManager, function: str) -> None:
    answer, uep = running_uep(alice, lab, function)
    assert status_of(alice, answer) == ["waiting-for-ep"]
    uep.credit(1)
    tasks = uep.take(1)
    assert status_of(alice, answer) == ["waiting-for-nodes"]
    uep.send(messages.Started(rows=[tasks[0].row]))
    until("tasks that run", lambda: status_of(alice, answer) == ["running"])
    uep.finish(tasks, b"\x00\xff", code="TASK_FAILED", text="Traceback ...")
    told = alice.task(tasks[0].task_id)
    assert (told["status"], told["code"], told["reason"]) == ("failed", "TASK_FAILED", "Traceback ...")
    assert told["exception"] == "b64:AP8="
    assert "result" not in told


def test_repeated_and_late_results_are_acknowledged_and_change_nothing(
    alice: Person, lab: FakeManager, function: str
) -> None:
    answer, uep = running_uep(alice, lab, function)
    uep.credit(1)
    tasks = uep.take(1)
    uep.finish(tasks, b"first")
    uep.finish(tasks, b"second")
    assert alice.task(tasks[0].task_id)["result"] == "first"
    stream = alice.stream(answer["task_group_id"])
    assert [one.payload for one in stream.results(1)] == [b"first"]
    stream.close()


def test_a_result_of_another_task_is_let_go_and_ends_nothing(alice: Person, lab: FakeManager, function: str) -> None:
    answer, uep = running_uep(alice, lab, function)
    uep.credit(2)
    (task,) = uep.take(1)
    for strange in (str(uuid.uuid4()), "no id", ""):
        uep.finish([msgspec.structs.replace(task, task_id=strange)], b"of an older task")
        uep.credit(1)
        assert uep.take(1) == [task]  # the peer may never have had it
    uep.finish([task], b"its own")
    assert alice.task(task.task_id)["result"] == "its own"
    assert status_of(alice, answer) == ["success"]


def test_statuses_that_are_too_much_for_one_answer_come_when_asked_for_again(
    alice: Person, lab: FakeManager, function: str
) -> None:
    answer, uep = running_uep(alice, lab, function, count=5)
    uep.credit(5)
    tasks = uep.take(5)
    for task in tasks:
        uep.finish([task], b"x" * (MAX_PAYLOAD_BYTES - 1))
    found: dict[str, str] = {}
    wanted, answers = answer["tasks"][function], 0
    while wanted:
        told = alice.ok("POST", "/v2/batch_status", {"task_ids": wanted})
        assert set(told["results"]) == set(wanted)
        assert {told["results"][each]["status"] for each in told["withheld"]} <= {"running"}
        found |= {key: one["result"] for key, one in told["results"].items() if key not in told["withheld"]}
        wanted, answers = told["withheld"], answers + 1
    assert ([len(found[task.task_id]) for task in tasks], answers) == ([MAX_PAYLOAD_BYTES - 1] * 5, 2)
    ended = alice.ok("POST", "/v3/tasks/cancel", {"task_ids": list(found)})["ended"]
    assert len(ended) == 5


def test_hostile_results_are_put_in_bounds(alice: Person, lab: FakeManager, function: str) -> None:
    answer, uep = running_uep(alice, lab, function, count=3)
    uep.credit(3)
    big, odd, fine = uep.take(3)
    uep.finish([big], b"x" * (MAX_PAYLOAD_BYTES + 1))
    nan = float("nan")
    uep.send(
        messages.Results(items=[messages.ResultItem(odd.row, odd.task_id, "X" * 999, "\ud7ff\x00", b"", nan, 1e300)])
    )
    uep.expect(messages.ResultsDurable)
    uep.finish([fine])
    assert status_of(alice, answer) == ["failed", "failed", "success"]
    assert alice.task(big.task_id)["code"] == "RESULT_TOO_LARGE"
    assert alice.task(odd.task_id)["code"] == "X" * 64


def test_given_back_tasks_are_sent_again(alice: Person, lab: FakeManager, function: str) -> None:
    answer, uep = running_uep(alice, lab, function, count=3)
    uep.credit(3)
    tasks = uep.take(3)
    uep.send(messages.Returned(rows=[task.row for task in tasks[:2]]))
    until("tasks that wait for the endpoint", lambda: status_of(alice, answer)[:2] == ["waiting-for-ep"] * 2)
    uep.credit(2)
    assert uep.take(2) == tasks[:2]
    uep.finish(tasks)


def test_thousands_of_tasks_go_through_in_batches(alice: Person, lab: FakeManager, function: str) -> None:
    group = str(uuid.uuid4())
    for _ in range(5):
        alice.submit(lab.endpoint_id, function, ["p"] * 2000, task_group_id=group)
    uep = lab.start()
    uep.credit(10_000)
    stream = alice.stream(group)
    tasks = uep.take(10_000)
    assert len({task.row for task in tasks}) == 10_000
    for start in range(0, 10_000, 500):
        uep.send_results(tasks[start : start + 500], b"r")
    results = stream.results(10_000, timeout=30)
    assert {one.task_id for one in results} == {task.task_id for task in tasks}
    stream.close()


# --- ends of processes ------------------------------------------------------------------------------


def test_a_goodbye_and_the_next_process_lose_nothing(alice: Person, lab: FakeManager, function: str) -> None:
    answer, uep = running_uep(alice, lab, function)
    uep.credit(1)
    uep.finish(uep.take(1))
    uep.credit(5)
    uep.send(messages.Goodbye(code="IDLE", text=""))
    crossed = alice.submit(lab.endpoint_id, function, ["crossed"])
    lab.ended(uep.uep_id, "IDLE", "idle")
    again = lab.start()
    again.credit(1)
    tasks = again.take(1)
    assert [task.payload for task in tasks] == [b"crossed"]
    again.finish(tasks)
    assert status_of(alice, crossed) == ["success"]
    assert status_of(alice, answer) == ["success"]


def test_a_killed_process_what_had_not_started_waits_again_and_what_had_fails(
    alice: Person, lab: FakeManager, function: str
) -> None:
    answer, uep = running_uep(alice, lab, function, count=3)
    uep.credit(3)
    tasks = uep.take(3)
    uep.send(messages.Started(rows=[tasks[0].row, tasks[1].row]))
    until("tasks that run", lambda: status_of(alice, answer)[:2] == ["running"] * 2)
    uep.close()
    lab.ended(uep.uep_id, "KILLED", "killed by signal 9")
    request, token = lab.take_start()
    lab.answer(request.uep_id, "started")
    again = FakeUep(lab, request, token)
    # The second one's result was in the spool: only the first is lost.
    again.send(messages.Join(protocol=PROTOCOL_VERSION, uep_id=again.uep_id, token=token, held=[tasks[1].row]))
    again.expect(messages.UepWelcome)
    again.finish([tasks[1]], b"from the spool")
    again.credit(5)
    assert [task.row for task in again.take(1)] == [tasks[2].row]
    again.finish([tasks[2]])
    until("tasks that have ended", lambda: status_of(alice, answer) == ["failed", "success", "success"])
    assert alice.task(tasks[0].task_id)["code"] == "USER_ENDPOINT_LOST"
    again.finish([tasks[0]], b"too late")
    assert alice.task(tasks[0].task_id)["code"] == "USER_ENDPOINT_LOST"


def test_only_what_was_never_sent_is_said_not_to_have_begun(alice: Person, lab: FakeManager, function: str) -> None:
    """A worker begins a task, and its user endpoint is killed before it reports that. Then nothing starts there."""
    answer = alice.submit(lab.endpoint_id, function, ["sent", "not sent"])
    uep = lab.start()
    uep.credit(1)
    (sent,) = uep.take(1)
    uep.close()
    lab.ended(uep.uep_id, "KILLED", "killed by signal 9")
    request, _ = lab.take_start()
    lab.answer(request.uep_id, "refused", "START_FAILED", "The site could not start your process.")
    until("tasks that have ended", lambda: status_of(alice, answer) == ["failed", "failed"])
    codes = {task_id: alice.task(task_id)["code"] for task_id in answer["tasks"][function]}
    assert codes.pop(sent.task_id) == "USER_ENDPOINT_LOST"
    assert list(codes.values()) == ["START_FAILED"]


def test_tasks_wait_while_process_after_process_dies(alice: Person, lab: FakeManager, function: str) -> None:
    """Three killed in a row say nothing against a fourth. The unit tests show when the tasks fail after all."""
    answer = alice.submit(lab.endpoint_id, function, ["p"])
    for _ in range(4):
        uep = lab.start()
        uep.credit(1)
        uep.take(1)
        uep.close()
        lab.ended(uep.uep_id, "KILLED", "killed by signal 9")
    uep = lab.start()
    uep.credit(1)
    uep.finish(uep.take(1))
    until("tasks that have ended", lambda: status_of(alice, answer) == ["success"])


def test_a_start_that_was_interrupted_is_asked_for_again_and_the_person_reads_why(
    alice: Person, lab: FakeManager, function: str
) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p"])
    text = "Your process at the site was ended while it was starting (killed by signal 9)."
    ((task_id,),) = answer["tasks"].values()
    for tried in ("happened once", "happened 2 times", "happened 3 times"):
        request, _ = lab.take_start()
        lab.answer(request.uep_id, "unavailable", "START_INTERRUPTED", text)
        until("the reason that is tried", lambda tried=tried: tried in (alice.task(task_id)["reason"] or ""))  # type: ignore[misc]
        assert text in alice.task(task_id)["reason"]
    uep = lab.start()
    uep.credit(1)
    uep.finish(uep.take(1))
    until("tasks that have ended", lambda: status_of(alice, answer) == ["success"])


def test_a_process_that_ends_before_it_joins_is_asked_for_again(alice: Person, lab: FakeManager, function: str) -> None:
    alice.submit(lab.endpoint_id, function, ["p"])
    request, _ = lab.take_start()
    lab.answer(request.uep_id, "started")
    lab.ended(request.uep_id)
    uep = lab.start()
    uep.credit(1)
    uep.finish(uep.take(1))


def test_a_lost_link_is_resumed_with_what_is_held(alice: Person, lab: FakeManager, function: str) -> None:
    answer, uep = running_uep(alice, lab, function, count=3)
    uep.credit(3)
    tasks = uep.take(3)
    uep.close()
    uep.connect()
    uep.hello([tasks[0].row])  # the other two were lost on the way
    uep.finish(tasks[:1])
    uep.credit(2)
    assert uep.take(2) == tasks[1:]
    assert uep.functions == {function: b"the code"}  # sent again on the new link
    uep.finish(tasks[1:])
    assert status_of(alice, answer) == ["success"] * 3


def test_a_manager_that_is_killed_disturbs_no_user_endpoint(alice: Person, lab: FakeManager, function: str) -> None:
    _, uep = running_uep(alice, lab, function)
    lab.close()
    uep.credit(2)
    uep.finish(uep.take(1))
    answer = alice.submit(lab.endpoint_id, function, ["p"])
    uep.finish(uep.take(1))
    assert status_of(alice, answer) == ["success"]
    lab.connect()
    lab.hello([uep.uep_id])
    uep.credit(1)
    answer = alice.submit(lab.endpoint_id, function, ["p"])
    uep.finish(uep.take(1))


# --- cancelling and deleting ------------------------------------------------------------------------


def test_waiting_tasks_are_cancelled_and_running_ones_asked_to_stop(
    alice: Person, lab: FakeManager, function: str
) -> None:
    answer, uep = running_uep(alice, lab, function, count=3)
    ids = answer["tasks"][function]
    uep.credit(1)
    (task,) = uep.take(1)
    told = alice.ok("POST", "/v3/tasks/cancel", {"task_ids": ids[:2]})
    assert told == {"cancelled": [ids[1]], "asked": [ids[0]], "ended": [], "missing": []}
    assert uep.expect(messages.CancelTasks).rows == [task.row]
    uep.finish([task], b"", code="TASK_CANCELLED", text="cancelled")
    assert status_of(alice, answer) == ["cancelled", "cancelled", "waiting-for-ep"]
    assert alice.ok("POST", "/v3/tasks/cancel", {"task_ids": ids[:1]})["ended"] == ids[:1]
    stream = alice.stream(answer["task_group_id"])
    assert {one.code for one in stream.results(2)} == {"TASK_CANCELLED"}
    stream.close()
    uep.credit(5)
    assert [one.task_id for one in uep.take(1)] == [ids[2]]


def test_a_task_whose_user_endpoint_has_just_gone_is_cancelled_at_once(
    alice: Person, lab: FakeManager, function: str
) -> None:
    answer, uep = running_uep(alice, lab, function)
    uep.credit(1)
    (task,) = uep.take(1)
    uep.close()
    time.sleep(0.5)  # the relay's socket knows it then, and the relay does not
    ids = answer["tasks"][function]
    assert alice.ok("POST", "/v3/tasks/cancel", {"task_ids": ids})["cancelled"] == ids
    assert status_of(alice, answer) == ["cancelled"]
    uep.connect()
    uep.hello([task.row])
    assert uep.expect(messages.CancelTasks).rows == [task.row]


def test_a_deleted_endpoint_fails_what_waits_and_its_manager_is_told(
    relay: RelayProcess, alice: Person, function: str
) -> None:
    doomed = FakeManager(relay, alice.token).hello()
    answer, uep = running_uep(alice, doomed, function, count=3)
    uep.credit(1)
    (task,) = uep.take(1)
    alice.ok("DELETE", f"/v2/endpoints/{doomed.endpoint_id}")
    doomed.expect(messages.EndpointGone)
    uep.expect(messages.StopUep)
    until("tasks that have ended", lambda: status_of(alice, answer)[1:] == ["failed"] * 2)
    assert alice.task(answer["tasks"][function][1])["code"] == "ENDPOINT_DELETED"
    uep.finish([task])  # a task that ran to its end is still accepted
    assert status_of(alice, answer)[0] == "success"
    alice.refused(404, "ENDPOINT_NOT_FOUND", "GET", f"/v2/endpoints/{doomed.endpoint_id}")
    body = {"tasks": {function: ["p"]}}
    alice.refused(404, "ENDPOINT_NOT_FOUND", "POST", f"/v3/endpoints/{doomed.endpoint_id}/submit", body)
    doomed.close()
    doomed.connect()
    doomed.send(
        messages.ManagerHello(
            protocol=PROTOCOL_VERSION, endpoint_id=doomed.endpoint_id, epoch=b"e" * 16, version="", hostname=""
        )
    )
    doomed.expect(messages.EndpointGone)


def test_an_update_with_a_new_key_cuts_the_old_link(relay: RelayProcess, alice: Person) -> None:
    old = FakeManager(relay, alice.token).hello()
    public, _ = zmq.curve_keypair()
    body = {"endpoint_name": "lab", "multi_user": True}
    keys = {"link_public_key": public.decode(), "unseal_public_key": os.urandom(32).hex()}
    alice.ok("PUT", f"/v3/endpoints/{old.endpoint_id}", body)
    assert alice.ok("GET", f"/v2/endpoints/{old.endpoint_id}/status")["status"] == "online"
    alice.ok("PUT", f"/v3/endpoints/{old.endpoint_id}", {**body, **keys})
    assert refused(old).final
    assert alice.ok("GET", f"/v2/endpoints/{old.endpoint_id}/status")["status"] == "offline"


def test_a_peer_that_does_not_read_costs_little_memory_and_disturbs_no_other(
    relay: RelayProcess, alice: Person, lab: FakeManager, function: str
) -> None:
    def resident_mb() -> int:
        text = Path(f"/proc/{relay.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) // 1024

    for _ in range(10):
        alice.submit(lab.endpoint_id, function, ["x" * 400_000] * 50)  # 200 MB
    request, token = lab.take_start()
    lab.answer(request.uep_id, "started")
    deaf = FakeUep(lab, request, token)
    deaf.socket.close()
    deaf.connect(rcvhwm=1)
    deaf.join()
    before = resident_mb()
    deaf.credit(100_000)
    answer = alice.submit(lab.endpoint_id, function, ["p"], user_endpoint_config={"other": 1})
    other = lab.start()
    other.credit(1)
    other.finish(other.take(1))
    assert status_of(alice, answer) == ["success"]
    time.sleep(1.0)
    assert resident_mb() - before < 130
    assert len({task.row for task in deaf.take(500)}) == 500  # nothing was dropped
