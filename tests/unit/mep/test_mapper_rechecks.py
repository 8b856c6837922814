"""The mapper's part in re-checks: says which account a person maps to now, and takes no outage for an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mep.boundary.messages import NoLongerMapped, NotMapped, StillMapped
from mep_wire.identity import IdentitySet
from tests.support.start_requests import RelaySide, alice
from tests.unit.mep import test_mapper_service as service

relay, mapping, mapper = service.relay, service.mapping, service.mapper
Running = service.Running
UEP = "0b2bb5a8-6a5f-4b3c-8f5b-cccccccccccc"
NOBODY = IdentitySet("account-9", ())


def recheck(mapper: Running, relay: RelaySide, **changes: object) -> object:
    fields = {"recheck": True, "uep_id": UEP, "user_endpoint_config": {}, "user_runtime": {}, **changes}
    message, descriptors = mapper.ask_document(relay.document(**{"sealed_join_token": b"", **fields}))
    assert not descriptors
    return message


def test_somebody_still_maps(relay: RelaySide, mapper: Running) -> None:
    assert recheck(mapper, relay) == StillMapped(7, UEP, "meptest-alice", "correlation-1")


def test_the_id_need_not_be_made_of_the_account_that_the_person_has_now(relay: RelaySide, mapper: Running) -> None:
    linked = IdentitySet("another-account", (alice(),))
    assert isinstance(recheck(mapper, relay, identity_set=linked), StillMapped)


@pytest.mark.parametrize("who", [NOBODY, IdentitySet("a", (alice(username="x@elsewhere.example"),))])
def test_somebody_does_not_any_more(relay: RelaySide, mapper: Running, who: IdentitySet) -> None:
    answer = recheck(mapper, relay, identity_set=who)
    assert isinstance(answer, NoLongerMapped)
    assert (answer.uep_id, answer.code) == (UEP, "IDENTITY_NOT_MAPPED")


@pytest.mark.parametrize("uep_id", ["x", "../../etc/passwd", UEP.upper(), ""])
def test_an_id_that_is_none_is_refused(relay: RelaySide, mapper: Running, uep_id: str) -> None:
    answer = recheck(mapper, relay, uep_id=uep_id or " ")
    assert isinstance(answer, NotMapped)
    assert answer.code == "START_REQUEST_REFUSED"


def test_a_recheck_is_signed_and_fresh_like_a_start(relay: RelaySide, mapper: Running) -> None:
    stranger = RelaySide(now=relay.now)
    answer = recheck(mapper, stranger)
    assert isinstance(answer, NotMapped) and answer.code == "START_REQUEST_REFUSED"
    answer = recheck(mapper, relay, epoch=bytes(16))
    assert isinstance(answer, NotMapped) and answer.code == "START_REQUEST_STALE"


def test_a_start_without_identities_stays_refused(relay: RelaySide, mapper: Running) -> None:
    answer, _ = mapper.ask_document(relay.document(identity_set=NOBODY))
    assert isinstance(answer, NotMapped) and answer.code == "START_REQUEST_REFUSED"


@pytest.fixture
def broken_first(relay: RelaySide, tmp_path: Path) -> Iterator[Running]:
    """A mapper with two documents: the first fails and may be passed over, the second maps to another account."""
    broken = {
        "DATA_TYPE": "ldap_identity_mapping#1.0.0", "servers": ["ldap://127.0.0.1:1"], "start_tls": False,
        "base": "dc=x", "filter": "(mail={username})", "connect_timeout_s": 1, "on_error": "next",
    }  # fmt: skip
    path = tmp_path / "identity_mapping.json"
    path.write_text(json.dumps([broken, *service.MAPPING]))
    running = Running(relay, mapping_path=str(path), network=True)
    running.ready()
    yield running
    running.end()


def test_a_mapper_that_fails_is_no_answer_even_where_a_start_may_pass_it_over(
    relay: RelaySide, broken_first: Running
) -> None:
    answer = recheck(broken_first, relay)
    assert isinstance(answer, NoLongerMapped) and answer.code == "MAPPER_UNAVAILABLE"
