"""Messages about an earlier process of a user endpoint, told late: a real relay, and peers that a test plays.

Each test has an ended process, its successor, which runs tasks, and a message about the first that arrives while the
second runs. A manager repeats each message until it knows that it was read. All of this therefore happens wherever a
link is cut.
"""

from __future__ import annotations

from typing import Any

import pytest

from mep_wire import PROTOCOL_VERSION, messages
from mep_wire.start_request import decode_start, incarnation_of
from tests.support.fake_peer import FakeManager, FakeUep, Nothing
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.relay_steps import status_of
from tests.support.waiting import until

REVOKED = {"code": "IDENTITY_NOT_MAPPED", "text": "Not any more.", "correlation_id": "c"}


def start(lab: FakeManager) -> FakeUep:
    """Take a start request and answer it as a manager of this version does; return the process, joined."""
    request, token = lab.take_start()
    name = incarnation_of(token)
    lab.answer(request.uep_id, "started", asked=name, incarnation=name)
    return FakeUep(lab, request, token).join()


def begin(alice: Person, uep: FakeUep, answer: Any) -> list[messages.TaskItem]:
    """Have a submission's one task begun."""
    uep.credit(1)
    tasks = uep.take(1)
    uep.send(messages.Started(rows=[task.row for task in tasks]))
    until("tasks that run", lambda: status_of(alice, answer) == ["running"])
    return tasks


@pytest.fixture
def scene(alice: Person, lab: FakeManager, function: str) -> tuple[FakeUep, FakeUep, Any, list[messages.TaskItem]]:
    """An ended process that began no task, its successor, and a submission with its task running in the successor."""
    answer = alice.submit(lab.endpoint_id, function, ["p"])
    first = start(lab)
    first.close()
    lab.ended(first.uep_id, incarnation=first.incarnation)
    second = start(lab)
    return first, second, answer, begin(alice, second, answer)


def heard(lab: FakeManager) -> None:
    """Wait until the relay has read everything that the manager has said."""
    lab.send(messages.Ping(sent_at=7.0))
    while True:
        assert lab.socket.poll(10_000), "no Pong"
        message = lab._decode(lab.socket.recv())
        if message == messages.Pong(sent_at=7.0):
            return
        lab._kept.append(message)


def unharmed(alice: Person, uep: FakeUep, answer: Any, tasks: list[messages.TaskItem], lab: FakeManager) -> None:
    """The process keeps its link and its task, and nothing else is started."""
    heard(lab)
    with pytest.raises(Nothing):  # longer than the relay waits for last results before it believes in an end
        uep.receive(1500)
    assert status_of(alice, answer) == ["running"]
    with pytest.raises(Nothing):
        lab.expect(messages.SignedStart, 100)
    uep.finish(tasks)
    assert status_of(alice, answer) == ["success"]


def test_an_end_told_again_leaves_the_next_process_alone(alice: Person, lab: FakeManager, scene: Any) -> None:
    first, second, answer, tasks = scene
    lab.ended(first.uep_id, incarnation=first.incarnation)
    unharmed(alice, second, answer, tasks, lab)


def test_a_revocation_told_again_leaves_the_next_process_alone(alice: Person, lab: FakeManager, scene: Any) -> None:
    first, second, answer, tasks = scene
    lab.send(messages.UepRevoked(uep_id=first.uep_id, incarnation=first.incarnation, **REVOKED))
    lab.ended(first.uep_id, REVOKED["code"], incarnation=first.incarnation)
    unharmed(alice, second, answer, tasks, lab)


def test_the_end_of_the_process_itself_is_believed(alice: Person, lab: FakeManager, scene: Any) -> None:
    _, second, answer, _ = scene
    lab.ended(second.uep_id, incarnation=second.incarnation)
    start(lab)
    until("tasks that have ended", lambda: status_of(alice, answer) == ["failed"])


def test_a_list_of_what_runs_from_before_the_process_joined(alice: Person, lab: FakeManager, scene: Any) -> None:
    first, second, answer, tasks = scene
    lab.send(messages.RunningUeps(uep_ids=[first.uep_id], incarnations=[first.incarnation]))
    lab.send(messages.RunningUeps(uep_ids=[second.uep_id], incarnations=[second.incarnation]))
    lab.ended(first.uep_id, incarnation=first.incarnation)
    heard(lab)
    second.close()  # its manager still says that it runs
    second.connect()
    second.hello([tasks[0].row])
    unharmed(alice, second, answer, tasks, lab)


def test_a_process_that_another_one_has_followed_is_known_to_be_gone(
    alice: Person, lab: FakeManager, function: str, scene: Any
) -> None:
    _, second, answer, _ = scene
    lab.send(messages.RunningUeps(uep_ids=[second.uep_id], incarnations=[b"another process!"]))
    second.credit(1)
    heard(lab)
    second.close()
    alice.submit(lab.endpoint_id, function, ["p"])
    start(lab)
    until("tasks that have ended", lambda: status_of(alice, answer) == ["failed"])


def test_an_end_told_again_to_a_relay_that_was_restarted(tmp_path: Any) -> None:
    with RelayProcess(tmp_path) as relay:
        alice = Person(relay, "alice")
        lab = FakeManager(relay, alice.token).hello()
        answer = alice.submit(lab.endpoint_id, alice.function(), ["p"])
        first = start(lab)
        first.close()
        lab.ended(first.uep_id, incarnation=first.incarnation)
        second = start(lab)
        tasks = begin(alice, second, answer)
        relay.kill()
        for link in (lab, second):
            link.close()
        relay.start()
        second.connect()
        second.hello([tasks[0].row])
        lab.connect()
        lab.hello([second.uep_id], [second.incarnation])
        lab.ended(first.uep_id, incarnation=first.incarnation)
        unharmed(alice, second, answer, tasks, lab)


# --- while the next process is being started -----------------------------------------------------------


@pytest.fixture
def starting(alice: Person, lab: FakeManager, function: str) -> tuple[FakeUep, Any, bytes, Any]:
    """A process that ended, the start request for the next one with its token, and a submission that waits."""
    answer = alice.submit(lab.endpoint_id, function, ["p"])
    first = start(lab)
    first.close()
    lab.ended(first.uep_id, incarnation=first.incarnation)
    request, token = lab.take_start()
    return first, request, token, answer


def joins(alice: Person, lab: FakeManager, request: Any, token: bytes, answer: Any) -> None:
    """The process that was asked for comes and runs the task, with no other asked for."""
    heard(lab)
    with pytest.raises(Nothing):
        lab.expect(messages.SignedStart, 800)
    assert status_of(alice, answer) == ["waiting-for-ep"]
    second = FakeUep(lab, request, token).join()
    second.finish(begin(alice, second, answer))
    assert status_of(alice, answer) == ["success"]


def test_a_refusal_of_an_earlier_request_fails_nothing(alice: Person, lab: FakeManager, starting: Any) -> None:
    first, request, token, answer = starting
    lab.answer(first.uep_id, "refused", "IDENTITY_NOT_MAPPED", "No.", asked=first.incarnation)
    joins(alice, lab, request, token, answer)


def test_a_start_told_again_with_its_end_is_no_answer_to_the_next(
    alice: Person, lab: FakeManager, starting: Any
) -> None:
    first, request, token, answer = starting
    lab.answer(first.uep_id, "started", asked=first.incarnation, incarnation=first.incarnation)
    lab.ended(first.uep_id, incarnation=first.incarnation)
    joins(alice, lab, request, token, answer)


def test_an_end_told_again_after_the_next_one_is_answered(alice: Person, lab: FakeManager, starting: Any) -> None:
    first, request, token, answer = starting
    lab.answer(request.uep_id, "started", asked=incarnation_of(token), incarnation=incarnation_of(token))
    lab.ended(first.uep_id, incarnation=first.incarnation)
    joins(alice, lab, request, token, answer)


def test_the_place_of_an_earlier_request_is_not_shown(alice: Person, lab: FakeManager, starting: Any) -> None:
    first, request, token, answer = starting
    lab.send(messages.StartQueued(uep_id=first.uep_id, position=17, asked=first.incarnation))
    heard(lab)
    (task_id,) = next(iter(answer["tasks"].values()))
    assert "number 17" not in str(alice.task(task_id))
    joins(alice, lab, request, token, answer)


def test_a_process_that_dies_before_it_joins_is_asked_for_again(alice: Person, lab: FakeManager, starting: Any) -> None:
    _, request, token, _ = starting
    name = incarnation_of(token)
    lab.answer(request.uep_id, "started", asked=name, incarnation=name)
    lab.ended(request.uep_id, incarnation=name)
    assert start(lab).incarnation != name


# --- user endpoints themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["started", "lost", "results", "returned"])
def test_what_an_earlier_process_says_over_its_own_link(
    alice: Person, lab: FakeManager, function: str, said: str
) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p"], max_attempts=3)
    first = start(lab)
    first.credit(1)
    (task,) = first.take(1)
    lab.ended(first.uep_id, incarnation=first.incarnation)  # its link is up: it hangs, say
    second = start(lab)
    tasks = begin(alice, second, answer)
    assert tasks[0].row == task.row
    message: Any = {
        "started": messages.Started(rows=[task.row]),
        "lost": messages.Lost(rows=[task.row], attempts=[1]),
        "results": messages.Results(items=[messages.ResultItem(task.row, task.task_id, "", "", b"old", 1.0, 2.0)]),
        "returned": messages.Returned(rows=[task.row]),
    }[said]
    first.send(message)
    assert first.expect(messages.Refused).code == "HELLO_NEEDED"
    first.send(messages.UepHello(protocol=PROTOCOL_VERSION, uep_id=first.uep_id, held=[task.row]))
    assert first.expect(messages.Refused).code == "JOIN_REFUSED"
    unharmed(alice, second, answer, tasks, lab)


# --- re-checks ---------------------------------------------------------------------------------------------


def test_a_recheck_names_the_process_that_the_manager_asked_about(lab: FakeManager, scene: Any) -> None:
    first, second, _, _ = scene
    for asked in (first, second):
        lab.send(messages.Recheck(uep_ids=[asked.uep_id], incarnations=[asked.incarnation]))
        signed = lab.expect(messages.SignedStart)
        assert (decode_start(signed.request).incarnation, signed.incarnation) == (asked.incarnation, asked.incarnation)
    lab.send(messages.Recheck(uep_ids=[second.uep_id]))  # an older manager: its mapper doesn't know this field
    assert b"incarnation" not in lab.expect(messages.SignedStart).request
