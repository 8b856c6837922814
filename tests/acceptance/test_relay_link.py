"""Starts and joins over the endpoint link, and which peer may send which message on it."""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

import pytest
import zmq

from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.ids import user_endpoint_id
from mep_wire.start_request import EPOCH_BYTES, NONCE_BYTES
from tests.support.fake_peer import FakeLink, FakeManager, FakeUep, Nothing
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.relay_steps import refused, running_uep, status_of
from tests.support.waiting import until

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


def test_what_a_person_asked_for_before_their_accounts_were_linked_still_starts(relay: RelayProcess) -> None:
    carol, kept = Person(relay, "carol"), Person(relay, "carol.lab")
    lab = FakeManager(relay, carol.token)
    function = carol.function()
    answer = carol.submit(lab.endpoint_id, function, ["p"], user_endpoint_config={"A": 1})
    relay.cli("user", "link", kept.username, carol.username)
    request, token = lab.hello().take_start()
    who = request.identity_set
    assert [one.username for one in who.identities] == [carol.username, kept.username]
    # The endpoint computes the same, and refuses a mismatch.
    config, runtime = request.user_endpoint_config, request.user_runtime
    assert user_endpoint_id(request.endpoint_id, who.account_id, config, runtime) == request.uep_id
    lab.answer(request.uep_id, "started")
    uep = FakeUep(lab, request, token).join()
    uep.credit(1)
    uep.finish(uep.take(1))
    assert status_of(kept, answer) == ["success"]


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
    until(
        "an endpoint that is offline",
        lambda: alice.ok("GET", f"/v2/endpoints/{lab.endpoint_id}/status")["status"] == "offline",
    )


def test_a_refused_start_fails_the_tasks_with_its_reason(alice: Person, lab: FakeManager, function: str) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p", "q"])
    request, _ = lab.take_start()
    lab.answer(request.uep_id, "refused", "IDENTITY_NOT_MAPPED", "nobody \x00here" + "x" * 5000)
    until("tasks that have ended", lambda: status_of(alice, answer) == ["failed", "failed"])
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
