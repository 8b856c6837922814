"""The relay's part in re-checks: it signs the identities again, and fails the tasks of a revoked user endpoint."""

from __future__ import annotations

import uuid

import pytest

from mep_wire import messages
from mep_wire.start_request import SIGNATURE_CONTEXT, StartRequest, decode_start
from tests.support.fake_peer import FakeManager, FakeUep, Nothing
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.relay_steps import running_uep, status_of
from tests.support.waiting import until


@pytest.fixture(scope="module")
def admin(relay: RelayProcess) -> Person:
    return Person(relay, "admin")


@pytest.fixture
def lab(relay: RelayProcess, admin: Person) -> FakeManager:
    return FakeManager(relay, admin.token).hello()


@pytest.fixture
def alice(relay: RelayProcess) -> Person:
    return Person(relay, "alice")


def who(lab: FakeManager, uep_id: str) -> StartRequest:
    """Return the relay's message about a user endpoint, its signature checked."""
    lab.send(messages.Recheck(uep_ids=[uep_id]))
    signed = lab.expect(messages.SignedStart)
    lab.signing_key.verify(signed.signature, SIGNATURE_CONTEXT + signed.request)
    request = decode_start(signed.request)
    assert signed.recheck and request.recheck
    assert (request.sealed_join_token, request.user_endpoint_config) == (b"", {})
    assert (request.endpoint_id, request.uep_id, request.epoch) == (lab.endpoint_id, uep_id, lab.epoch)
    return request


def names(request: StartRequest) -> list[str]:
    return [one.username for one in request.identity_set.identities]


def test_it_says_who_somebody_is_now(relay: RelayProcess, lab: FakeManager, alice: Person) -> None:
    _, uep = running_uep(alice, lab, alice.function())
    assert names(who(lab, uep.uep_id)) == [alice.username]
    second = Person(relay, "second")
    relay.cli("user", "link", alice.username, second.username)
    assert names(who(lab, uep.uep_id)) == [alice.username, second.username]
    relay.cli("user", "unlink", alice.username)
    assert names(who(lab, uep.uep_id)) == [second.username]
    relay.cli("user", "remove", second.username)
    assert names(who(lab, uep.uep_id)) == []


def test_unlinking_needs_something_to_unlink(relay: RelayProcess, alice: Person) -> None:
    done = relay.cli("user", "unlink", alice.username, check=False)
    assert done.returncode == 1
    assert "linked to no other identity" in done.stderr
    done = relay.cli("user", "unlink", "nobody@example.edu", check=False)
    assert done.returncode == 1
    assert "there is no user" in done.stderr


def test_a_recheck_spends_no_token_and_leaves_the_link_alone(lab: FakeManager, alice: Person) -> None:
    function = alice.function()
    answer, uep = running_uep(alice, lab, function)
    who(lab, uep.uep_id)
    uep.credit(1)
    uep.finish(uep.take(1))
    assert status_of(alice, answer) == ["success"]


def test_nothing_is_said_of_others_user_endpoints(
    relay: RelayProcess, admin: Person, lab: FakeManager, alice: Person
) -> None:
    _, uep = running_uep(alice, lab, alice.function())
    other = FakeManager(relay, admin.token).hello()
    other.send(messages.Recheck(uep_ids=[uep.uep_id, str(uuid.uuid4()), "", "x" * 1000]))
    with pytest.raises(Nothing):
        other.expect(messages.SignedStart, 300)


def test_a_user_endpoint_may_not_ask(lab: FakeManager, alice: Person) -> None:
    _, uep = running_uep(alice, lab, alice.function())
    uep.send(messages.Recheck(uep_ids=[uep.uep_id]))
    assert uep.expect(messages.Refused).code == "LINK_FORBIDDEN"


def revoke(lab: FakeManager, uep: FakeUep, code: str = "ACCOUNT_REFUSED") -> None:
    lab.send(messages.UepRevoked(uep_id=uep.uep_id, code=code, text="Not any more.", correlation_id="c-9"))


def test_all_tasks_of_what_is_revoked_fail_at_once_with_the_reason(lab: FakeManager, alice: Person) -> None:
    function = alice.function()
    answer, uep = running_uep(alice, lab, function, count=4)
    uep.credit(2)
    running, sent = uep.take(2)
    uep.send(messages.Started(rows=[running.row]))
    until("a task that runs", lambda: "running" in status_of(alice, answer))
    revoke(lab, uep)
    until("tasks that have ended", lambda: status_of(alice, answer) == ["failed"] * 4)
    for task_id in answer["tasks"][function]:
        told = alice.task(task_id)
        assert (told["code"], told["reason"], told["correlation_id"]) == ("ACCOUNT_REFUSED", "Not any more.", "c-9")
    assert uep.expect(messages.CancelTasks).rows == [running.row]
    uep.finish([running, sent], b"too late")
    assert set(status_of(alice, answer)) == {"failed"}
    # Nothing is sent to it after that, and it isn't started again before a person submits to it.
    uep.close()
    lab.ended(uep.uep_id, "ACCOUNT_REFUSED", "Not any more.")
    with pytest.raises(Nothing):
        lab.take_start(wait_ms=500)
    alice.submit(lab.endpoint_id, function, ["p"])
    assert lab.take_start()[0].uep_id == uep.uep_id


def test_the_end_alone_says_it_too(lab: FakeManager, alice: Person) -> None:
    function = alice.function()
    answer, uep = running_uep(alice, lab, function, count=3)
    uep.credit(2)
    uep.send(messages.Started(rows=[uep.take(2)[0].row]))
    until("a task that runs", lambda: "running" in status_of(alice, answer))
    uep.close()
    lab.ended(uep.uep_id, "IDENTITY_NOT_MAPPED", "Nobody.")
    until("tasks that have ended", lambda: status_of(alice, answer) == ["failed"] * 3)
    assert {alice.task(one)["code"] for one in answer["tasks"][function]} == {"IDENTITY_NOT_MAPPED"}


@pytest.mark.parametrize("code", ["IDENTITY_REMAPPED", "MAPPING_UNCONFIRMED"])
def test_what_waits_for_somebody_who_may_start_anew_runs_there(lab: FakeManager, alice: Person, code: str) -> None:
    function = alice.function()
    answer, uep = running_uep(alice, lab, function, count=2)
    uep.credit(1)
    uep.send(messages.Started(rows=[uep.take(1)[0].row]))
    until("a task that runs", lambda: "running" in status_of(alice, answer))
    revoke(lab, uep, code)
    until("tasks that have ended", lambda: status_of(alice, answer)[0] == "failed")
    assert alice.task(answer["tasks"][function][0])["code"] == code
    uep.close()
    lab.ended(uep.uep_id, code)
    again = lab.start()
    again.credit(1)
    again.finish(again.take(1))
    assert status_of(alice, answer) == ["failed", "success"]


def test_a_code_that_is_no_revocation_and_others_user_endpoints_are_left_alone(
    relay: RelayProcess, admin: Person, lab: FakeManager, alice: Person
) -> None:
    answer, uep = running_uep(alice, lab, alice.function())
    revoke(lab, uep, "STOPPED")
    revoke(FakeManager(relay, admin.token).hello(), uep)
    uep.credit(1)
    uep.finish(uep.take(1))
    assert status_of(alice, answer) == ["success"]
