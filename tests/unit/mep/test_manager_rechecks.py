"""The manager's part in re-checks: asks the relay, passes on its answers, and reports each revocation to it."""

from __future__ import annotations

from mep.boundary.memfd import read_sealed
from mep.boundary.messages import (
    EndpointEnded,
    EndpointRevoked,
    EndpointRunning,
    RecheckNow,
    StartAnswered,
    StartEndpoint,
)
from mep_wire import messages
from tests.unit.mep import test_manager_service as service

FIRST, SECOND = b"the first one...", b"the second one.."
manager, relay_end, context = service.manager, service.relay_end, service.context
Running, RelayEnd = service.Running, service.RelayEnd


def asked(manager: Running, relay_end: RelayEnd) -> messages.Recheck:
    """Bring the link up, and have the one user endpoint that runs re-checked."""
    service.up(manager, relay_end)
    manager.say(EndpointRunning(uep_id="uep-1", incarnation=FIRST))
    assert relay_end.next(messages.RunningUeps).uep_ids == ["uep-1"]
    manager.say(RecheckNow())
    return relay_end.next(messages.Recheck)


def test_it_asks_who_the_person_is_and_keeps_the_answer_from_the_relay(manager: Running, relay_end: RelayEnd) -> None:
    recheck = asked(manager, relay_end)
    assert (recheck.uep_ids, recheck.incarnations) == (["uep-1"], [FIRST])
    relay_end.say(messages.SignedStart(uep_id="uep-1", request=b"r", signature=b"s", recheck=True))
    passed = manager.next(StartEndpoint)
    assert b"r" in read_sealed(manager.descriptors[0], 1 << 20)
    manager.say(StartAnswered(passed.ref, "already_running", "uep-1", "", "", "c"))
    manager.say(EndpointEnded(uep_id="uep-1", code="IDLE", public="", correlation_id=""))
    assert relay_end.next(messages.UepEnded).uep_id == "uep-1"  # and no StartAnswer before it


def test_one_that_ended_is_not_asked_for(manager: Running, relay_end: RelayEnd) -> None:
    service.up(manager, relay_end)
    manager.say(EndpointRunning(uep_id="uep-1"))
    assert relay_end.next(messages.RunningUeps).uep_ids == ["uep-1"]
    manager.say(EndpointEnded(uep_id="uep-1", code="IDLE", public="", correlation_id=""))
    assert relay_end.next(messages.UepEnded)
    manager.say(RecheckNow())
    assert not relay_end.socket.poll(300)


def test_what_is_revoked_is_told_also_where_the_link_is_down_at_the_time(manager: Running, relay_end: RelayEnd) -> None:
    manager.say(EndpointRevoked("uep-1", "ACCOUNT_REFUSED", "No.", "c-1"))
    manager.say(EndpointEnded("uep-1", "ACCOUNT_REFUSED", "No.", "c-1"))
    manager.say(service.MapperEpoch(epoch=service.EPOCH))
    relay_end.welcome()
    told = relay_end.next(messages.UepRevoked)
    assert (told.uep_id, told.code, told.text, told.correlation_id) == ("uep-1", "ACCOUNT_REFUSED", "No.", "c-1")
    assert relay_end.next(messages.UepEnded).code == "ACCOUNT_REFUSED"


def test_the_end_of_an_earlier_process_leaves_the_next_one_in_the_list(manager: Running, relay_end: RelayEnd) -> None:
    service.up(manager, relay_end)
    for incarnation in (FIRST, SECOND):
        manager.say(EndpointRunning(uep_id="uep-1", incarnation=incarnation))
        assert relay_end.next(messages.RunningUeps).incarnations == [incarnation]
    manager.say(EndpointRevoked("uep-1", "ACCOUNT_REFUSED", "No.", "c-1", incarnation=FIRST))
    assert relay_end.next(messages.UepRevoked).incarnation == FIRST
    manager.say(EndpointEnded("uep-1", "ACCOUNT_REFUSED", "No.", "c-1", incarnation=FIRST))
    assert relay_end.next(messages.UepEnded).incarnation == FIRST
    manager.say(RecheckNow())
    assert relay_end.next(messages.Recheck).incarnations == [SECOND]
    manager.say(service.MapperEpoch(epoch=bytes(16)))
    relay_end.welcome()
    told = relay_end.next(messages.RunningUeps)
    assert (told.uep_ids, told.incarnations) == (["uep-1"], [SECOND])


def test_an_answer_names_the_request_and_the_process_that_runs(manager: Running, relay_end: RelayEnd) -> None:
    service.up(manager, relay_end)
    relay_end.say(messages.SignedStart(uep_id="uep-1", request=b"r", signature=b"s", incarnation=SECOND))
    passed = manager.next(StartEndpoint)
    manager.say(StartAnswered(passed.ref, "already_running", "uep-1", "", "", "c", incarnation=FIRST))
    answer = relay_end.next(messages.StartAnswer)
    assert (answer.asked, answer.incarnation) == (SECOND, FIRST)
