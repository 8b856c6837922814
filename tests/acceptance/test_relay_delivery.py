"""Starts, tasks and results over the endpoint link: a real relay, and a peer that says what a test wants said."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.limits import MAX_PAYLOAD_BYTES
from mep_wire.start import EPOCH_BYTES, NONCE_BYTES
from tests.support.fake_peer import FakeLink, FakeManager, FakeUep, Nothing
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path_factory.mktemp("relay")) as running:
        yield running


@pytest.fixture(scope="module")
def alice(relay: RelayProcess) -> Person:
    return Person(relay, "alice")


@pytest.fixture
def lab(relay: RelayProcess, alice: Person) -> FakeManager:
    return FakeManager(relay, alice.token).hello()


@pytest.fixture(scope="module")
def function(alice: Person) -> str:
    return alice.function("the code")


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status_of(person: Person, answer: Any) -> list[str]:
    ids = [task_id for ids in answer["tasks"].values() for task_id in ids]
    found = person.ok("POST", "/v2/batch_status", {"task_ids": ids})["results"]
    return [found[task_id]["status"] for task_id in ids]


def running_uep(alice: Person, lab: FakeManager, function: str, count: int = 1) -> tuple[Any, FakeUep]:
    answer = alice.submit(lab.endpoint_id, function, ["p"] * count)
    return answer, lab.start()


# --- starts -----------------------------------------------------------------------------------------


def test_a_start_request_says_who_and_what(alice: Person, lab: FakeManager, function: str) -> None:
    config = {"PARTITION": "gpu", "deep": {"list": [1, None, 2.5, "x"]}}
    alice.submit(lab.endpoint_id, function, ["p"], user_endpoint_config=config, user_runtime={"python": "3.11"})
    request, token = lab.take_start()
    assert request.endpoint_id == lab.endpoint_id
    assert request.user_endpoint_config == config
    assert request.user_runtime == {"python": "3.11"}
    assert [one.username for one in request.identity_set.identities] == [alice.username]
    assert request.epoch == lab.epoch
    assert len(request.epoch) == EPOCH_BYTES
    assert len(request.nonce) == NONCE_BYTES
    assert 0 < request.expires_at - time.time() <= 60
    assert len(token) == 32


def test_the_same_values_have_one_user_endpoint_and_any_change_another(
    relay: RelayProcess, alice: Person, lab: FakeManager, function: str
) -> None:
    bob = Person(relay, "bob")
    theirs = bob.function()
    alice.submit(lab.endpoint_id, function, ["p"], user_endpoint_config={"A": 1, "B": 2})
    alice.submit(lab.endpoint_id, function, ["p"], user_endpoint_config={"B": 2, "A": 1})
    alice.submit(lab.endpoint_id, function, ["p"], user_endpoint_config={"A": 2})
    bob.submit(lab.endpoint_id, theirs, ["p"], user_endpoint_config={"A": 1, "B": 2})
    ids = {lab.take_start()[0].uep_id for _ in range(3)}
    assert len(ids) == 3
    with pytest.raises(Nothing):
        lab.take_start(wait_ms=300)


def test_a_linked_identity_comes_along_and_the_one_logged_in_with_is_first(
    relay: RelayProcess, lab: FakeManager
) -> None:
    home, work = Person(relay, "home"), Person(relay, "work")
    relay.cli("user", "link", home.username, work.username)
    time.sleep(1.1)  # the relay keeps who a token belongs to for a second
    work.submit(lab.endpoint_id, work.function(), ["p"])
    identities = lab.take_start()[0].identity_set.identities
    assert [one.username for one in identities] == [work.username, home.username]


def test_a_task_waits_for_its_endpoint_to_come(relay: RelayProcess, alice: Person, function: str) -> None:
    absent = FakeManager(relay, alice.token)
    assert alice.ok("GET", f"/v2/endpoints/{absent.endpoint_id}/status")["status"] == "offline"
    answer = alice.submit(absent.endpoint_id, function, ["p"])
    assert status_of(alice, answer) == ["waiting-for-ep"]
    absent.hello()
    assert alice.ok("GET", f"/v2/endpoints/{absent.endpoint_id}/status")["status"] == "online"
    uep = absent.start()
    uep.credit(1)
    uep.finish(uep.take(1))
    assert status_of(alice, answer) == ["success"]


def test_a_closed_manager_link_is_noticed_by_asking(relay: RelayProcess, alice: Person, lab: FakeManager) -> None:
    lab.close()
    wait_for(lambda: alice.ok("GET", f"/v2/endpoints/{lab.endpoint_id}/status")["status"] == "offline")


def test_a_refused_start_fails_the_tasks_with_its_reason(alice: Person, lab: FakeManager, function: str) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p", "q"])
    request, _ = lab.take_start()
    lab.answer(request.uep_id, "refused", "IDENTITY_NOT_MAPPED", "nobody \x00here" + "x" * 5000)
    wait_for(lambda: status_of(alice, answer) == ["failed", "failed"])
    told = alice.task(answer["tasks"][function][0])
    assert (told["code"], told["correlation_id"]) == ("IDENTITY_NOT_MAPPED", "c-1")
    assert told["reason"].startswith("nobody")
    assert len(told["reason"]) == 1024
    # The next task asks again.
    alice.submit(lab.endpoint_id, function, ["p"])
    assert lab.take_start()[0].nonce != request.nonce


def test_an_unavailable_start_is_asked_again_signed_anew(alice: Person, lab: FakeManager, function: str) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p"])
    first, _ = lab.take_start()
    lab.answer(first.uep_id, "unavailable", "START_REQUEST_STALE")
    second, _ = lab.take_start(wait_ms=1000)
    assert second.nonce != first.nonce
    lab.answer(second.uep_id, "unavailable", "SITE_BUSY")
    third, token = lab.take_start(wait_ms=3000)
    lab.answer(third.uep_id, "started")
    uep = FakeUep(lab, third, token).join()
    uep.credit(1)
    uep.finish(uep.take(1))
    assert status_of(alice, answer) == ["success"]


def test_no_storm_of_retries(alice: Person, lab: FakeManager, function: str) -> None:
    alice.submit(lab.endpoint_id, function, ["p"])
    count, deadline = 0, time.monotonic() + 3.0
    while time.monotonic() < deadline:
        try:
            request, _ = lab.take_start(wait_ms=200)
        except Nothing:
            continue
        count += 1
        lab.answer(request.uep_id, "unavailable", "MAPPER_UNAVAILABLE")
    assert 2 <= count <= 6


def test_a_new_epoch_is_used_at_once(alice: Person, lab: FakeManager, function: str) -> None:
    lab.epoch = os.urandom(EPOCH_BYTES)
    lab.hello()
    alice.submit(lab.endpoint_id, function, ["p"])
    assert lab.take_start()[0].epoch == lab.epoch


def test_a_start_that_is_asked_twice_may_be_joined_by_either(alice: Person, lab: FakeManager, function: str) -> None:
    alice.submit(lab.endpoint_id, function, ["p"])
    first, token = lab.take_start()
    lab.close()
    lab.connect()
    lab.hello()
    lab.take_start()
    lab.answer(first.uep_id, "already_running")
    uep = FakeUep(lab, first, token).join()
    uep.credit(1)
    uep.finish(uep.take(1))


# --- joining ----------------------------------------------------------------------------------------


def refused(link: FakeLink) -> messages.Refused:
    return link.expect(messages.Refused)


def test_a_join_token_works_once_and_for_its_user_endpoint_alone(
    alice: Person, lab: FakeManager, function: str
) -> None:
    _, uep = running_uep(alice, lab, function)
    thief = FakeUep(lab, uep.request, uep.token)
    thief.send(messages.Join(protocol=PROTOCOL_VERSION, uep_id=uep.uep_id, token=uep.token))
    answer = refused(thief)
    assert (answer.code, answer.final) == ("JOIN_REFUSED", True)

    alice.submit(lab.endpoint_id, function, ["p"], user_endpoint_config={"other": 1})
    other, token = lab.take_start()
    wrong = FakeUep(lab, uep.request, token)
    wrong.send(messages.Join(protocol=PROTOCOL_VERSION, uep_id=uep.uep_id, token=token))
    assert refused(wrong).code == "JOIN_REFUSED"
    FakeUep(lab, other, token).join()


@pytest.mark.parametrize("token", [b"", b"x" * 32, b"x" * 100_000])
def test_a_made_up_join_is_refused(alice: Person, lab: FakeManager, function: str, token: bytes) -> None:
    alice.submit(lab.endpoint_id, function, ["p"])
    request, _ = lab.take_start()
    stranger = FakeUep(lab, request, token)
    stranger.send(messages.Join(protocol=PROTOCOL_VERSION, uep_id=request.uep_id, token=token))
    assert refused(stranger).code == "JOIN_REFUSED"
    stranger.connect()
    stranger.send(messages.Join(protocol=PROTOCOL_VERSION, uep_id=str(uuid.uuid4()), token=token))
    assert refused(stranger).code == "JOIN_REFUSED"


def test_what_is_said_right_behind_a_join_is_heard(alice: Person, lab: FakeManager, function: str) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p"])
    request, token = lab.take_start()
    uep = FakeUep(lab, request, token)
    uep.send(messages.Join(protocol=PROTOCOL_VERSION, uep_id=uep.uep_id, token=token))
    uep.credit(1)
    uep.finish(uep.take(1))
    assert status_of(alice, answer) == ["success"]


# --- who may say what -------------------------------------------------------------------------------


def stranger_of(lab: FakeManager, **options: Any) -> FakeLink:
    return FakeLink(lab._address, lab.relay_key, codec.decode_to_manager, **options)


def test_an_unknown_key_may_say_nothing_but_hello(lab: FakeManager) -> None:
    stranger = stranger_of(lab)
    for message in (
        messages.Credit(grant=5),
        messages.RunningUeps(uep_ids=[]),
        messages.Results(items=[]),
        messages.UepEnded(uep_id="x", code="", text="", correlation_id=""),
    ):
        stranger.send(message)
        answer = refused(stranger)
        assert (answer.code, answer.final) == ("HELLO_NEEDED", False)


def test_a_key_speaks_for_its_own_endpoint_alone(relay: RelayProcess, alice: Person, lab: FakeManager) -> None:
    other = FakeManager(relay, alice.token)
    other.send(
        messages.ManagerHello(
            protocol=PROTOCOL_VERSION, endpoint_id=lab.endpoint_id, epoch=b"e" * 16, version="", hostname=""
        )
    )
    answer = refused(other)
    assert (answer.code, answer.final) == ("LINK_FORBIDDEN", True)
    assert alice.ok("GET", f"/v2/endpoints/{lab.endpoint_id}/status")["status"] == "online"


def test_a_manager_may_not_play_a_user_endpoint_nor_the_other_way_round(
    alice: Person, lab: FakeManager, function: str
) -> None:
    _, uep = running_uep(alice, lab, function)
    uep.send(messages.UepEnded(uep_id=uep.uep_id, code="X", text="", correlation_id=""))
    assert refused(uep).code == "LINK_FORBIDDEN"
    lab.send(messages.Credit(grant=1))
    assert refused(lab).code == "LINK_FORBIDDEN"
    lab.connect()
    lab.hello([uep.uep_id])


def test_a_user_endpoint_cannot_take_anothers_name(alice: Person, lab: FakeManager, function: str) -> None:
    _, mine = running_uep(alice, lab, function)
    alice.submit(lab.endpoint_id, function, ["p"], user_endpoint_config={"other": 1})
    other = lab.start()
    other.connect()
    other.send(messages.UepHello(protocol=PROTOCOL_VERSION, uep_id=mine.uep_id, held=[]))
    assert refused(other).code == "LINK_FORBIDDEN"


def test_a_user_endpoint_cannot_end_anothers_tasks(alice: Person, lab: FakeManager, function: str) -> None:
    answer, mine = running_uep(alice, lab, function)
    mine.credit(1)
    tasks = mine.take(1)
    alice.submit(lab.endpoint_id, function, ["p"], user_endpoint_config={"other": 1})
    other = lab.start()
    other.send(messages.Started(rows=[task.row for task in tasks]))
    other.send_results(tasks, b"forged")
    other.expect(messages.ResultsDurable)
    assert status_of(alice, answer) == ["waiting-for-nodes"]
    mine.finish(tasks, b"real")
    assert alice.task(tasks[0].task_id)["result"] == "real"


def test_another_version_of_the_protocol_is_refused(lab: FakeManager) -> None:
    lab.send(
        messages.ManagerHello(
            protocol=PROTOCOL_VERSION + 1, endpoint_id=lab.endpoint_id, epoch=b"", version="", hostname=""
        )
    )
    answer = refused(lab)
    assert (answer.code, answer.final) == ("PROTOCOL_MISMATCH", True)


@pytest.mark.parametrize(
    "frames",
    [
        (b"",),
        (b"nonsense",),
        (b"\x93\xa7Results\x01",),
        (b"\xc1" * 100,),
        (b"\x81\xa1a\xa1b",),
        (codec.encode(messages.Started(rows=[2**63])),),
        (codec.encode(messages.Started(rows=[-1])),),
        (codec.encode(messages.Returned(rows=[0])),),
    ],
)
def test_nonsense_on_a_link_ends_it_and_no_other(
    alice: Person, lab: FakeManager, function: str, frames: tuple[bytes, ...]
) -> None:
    _, uep = running_uep(alice, lab, function)
    uep.send_raw(*frames)
    answer = refused(uep)
    assert (answer.code, answer.final) == ("LINK_MESSAGE_INVALID", False)
    uep.connect()
    uep.hello([])
    uep.credit(1)
    uep.finish(uep.take(1))


def test_messages_of_several_frames_and_no_messages_at_all_hurt_nobody(
    relay: RelayProcess, alice: Person, lab: FakeManager, function: str
) -> None:
    lab.send_raw(b"a", b"b", b"c")
    plain = zmq.Context.instance().socket(zmq.DEALER)
    plain.linger = 0
    plain.connect(relay.link_address)
    plain.send(b"no curve")
    plain.close()
    _, uep = running_uep(alice, lab, function)
    uep.credit(1)
    uep.finish(uep.take(1))


def test_a_routing_id_gives_no_power_over_the_peer_that_has_it(alice: Person, lab: FakeManager, function: str) -> None:
    alice.submit(lab.endpoint_id, function, ["p"])
    request, token = lab.take_start()
    uep = FakeUep(lab, request, token, routing_id=b"the-same").join()
    thief = FakeLink(lab._address, lab.relay_key, codec.decode_to_uep, routing_id=b"the-same")
    thief.send(messages.Credit(grant=100))
    with pytest.raises(Nothing):
        thief.receive(wait_ms=500)
    uep.credit(1)
    tasks = uep.take(1)
    uep.close()
    time.sleep(0.2)
    thief.connect()  # now the name is free: it is a stranger with that name
    thief.send(messages.Results(items=[messages.ResultItem(tasks[0].row, tasks[0].task_id, "", "", b"forged")]))
    assert refused(thief).code == "HELLO_NEEDED"
    uep.connect()
    uep._routing_id = None
    uep.close()
    uep.connect()
    uep.hello([task.row for task in tasks])
    uep.finish(tasks, b"real")
    assert alice.task(tasks[0].task_id)["result"] == "real"


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
    import msgspec

    assert msgspec.msgpack.decode(task.resource_spec) == {"num_nodes": 2}


def test_states_as_a_person_sees_them(alice: Person, lab: FakeManager, function: str) -> None:
    answer, uep = running_uep(alice, lab, function)
    assert status_of(alice, answer) == ["waiting-for-ep"]
    uep.credit(1)
    tasks = uep.take(1)
    assert status_of(alice, answer) == ["waiting-for-nodes"]
    uep.send(messages.Started(rows=[tasks[0].row]))
    wait_for(lambda: status_of(alice, answer) == ["running"])
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
    wait_for(lambda: status_of(alice, answer)[:2] == ["waiting-for-ep"] * 2)
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
    wait_for(lambda: status_of(alice, answer)[:2] == ["running"] * 2)
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
    wait_for(lambda: status_of(alice, answer) == ["failed", "success", "success"])
    assert alice.task(tasks[0].task_id)["code"] == "USER_ENDPOINT_LOST"
    again.finish([tasks[0]], b"too late")
    assert alice.task(tasks[0].task_id)["code"] == "USER_ENDPOINT_LOST"


def test_a_process_that_dies_again_and_again_is_given_up(alice: Person, lab: FakeManager, function: str) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p"])
    for _ in range(3):
        uep = lab.start()
        uep.credit(1)
        uep.take(1)
        uep.close()
        lab.ended(uep.uep_id, "KILLED", "killed by signal 9")
    wait_for(lambda: status_of(alice, answer) == ["failed"])
    told = alice.task(answer["tasks"][function][0])
    assert told["code"] == "USER_ENDPOINT_LOST"
    assert "killed by signal 9" in told["reason"]


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
    wait_for(lambda: status_of(alice, answer)[1:] == ["failed"] * 2)
    assert alice.task(answer["tasks"][function][1])["code"] == "ENDPOINT_DELETED"
    uep.finish([task])  # what ran to its end is still taken
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
