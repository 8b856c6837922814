"""shared_accounts: whether two people's user endpoints may run as one account at a time, with real accounts."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from mep.boundary.errors import Refusal, public_text
from mep.boundary.messages import EndpointEnded, StartAnswered
from tests.support.accounts import LocalAccount, account
from tests.support.monitor import MonitorRun, Puppet, ask, map_next, start_as
from tests.support.waiting import until

ANSWERS = {True: ("started", ""), False: ("refused", "ACCOUNT_SHARED")}


@pytest.fixture
def second_name(alice: LocalAccount) -> Iterator[LocalAccount]:
    """Another name of alice's uid."""
    with account(uid=alice.uid) as other:
        yield other


def site(mode: str) -> MonitorRun:
    run = MonitorRun()
    run.resolved = dataclasses.replace(run.resolved, shared_accounts=mode)
    return run


def start(manager: Puppet, mapper: Puppet, user: str, person: str, ref: int, **more: Any) -> tuple[str, StartAnswered]:
    return start_as(manager, mapper, user, ref=ref, person=person, **more)


def said(answer: StartAnswered) -> tuple[str, str]:
    return answer.outcome, answer.code


@pytest.mark.parametrize(
    ("mode", "first_is_literal", "second_is_literal", "both_may_run"),
    [
        ("", False, False, False), ("", True, False, False), ("", False, True, False), ("", True, True, True),
        ("refuse", True, True, False), ("allow", False, False, True),
    ],
)  # fmt: skip
def test_who_may_share(
    alice: LocalAccount, mode: str, first_is_literal: bool, second_is_literal: bool, both_may_run: bool
) -> None:
    """Each order of a literal and another mapping is a separate row."""
    with site(mode) as run:
        manager, mapper = run.ready()
        _, answer = start(manager, mapper, alice.name, "anna", 1, literal=first_is_literal)
        assert said(answer) == ANSWERS[True]
        _, answer = start(manager, mapper, alice.name, "anna", 2, literal=first_is_literal)
        assert said(answer) == ANSWERS[True], "one person may have several"
        refused, answer = start(manager, mapper, alice.name, "berta", 3, literal=second_is_literal)
        assert said(answer) == ANSWERS[both_may_run]
        if not both_may_run:
            assert answer.public == public_text(Refusal.ACCOUNT_SHARED)
            assert not any(word in answer.public for word in ("anna", alice.name, str(alice.uid)))
            (record,) = [one for one in run.audit_records() if one.get("uep_id") == refused and one["event"] == "start"]
            assert (record["policy"], record["stage"]) == ("refused", "CAPS")
            assert "anna@example.edu" in record["detail"]
            assert str(alice.uid) in record["detail"]


def test_two_starts_at_once(alice: LocalAccount) -> None:
    with site("") as run:
        manager, mapper = run.ready()
        for ref, person in ((1, "anna"), (2, "berta")):
            ask(manager, ref)
            map_next(mapper, alice.name, person=person)
        answers = [manager.take(StartAnswered)[0] for _ in range(2)]
        assert sorted(map(said, answers)) == [ANSWERS[False], ANSWERS[True]]


def test_two_names_of_one_uid(alice: LocalAccount, second_name: LocalAccount) -> None:
    with site("refuse") as run:
        manager, mapper = run.ready()
        assert said(start(manager, mapper, alice.name, "anna", 1)[1]) == ANSWERS[True]
        assert said(start(manager, mapper, second_name.name, "berta", 2)[1]) == ANSWERS[False]
        assert said(start(manager, mapper, second_name.name, "anna", 3)[1]) == ANSWERS[True]


def test_the_account_is_free_once_the_first_has_ended(alice: LocalAccount) -> None:
    with site("") as run:
        manager, mapper = run.ready()
        first, _ = start(manager, mapper, alice.name, "anna", 1)
        run.end(first)
        assert manager.take(EndpointEnded)[0].uep_id == first
        until("its record is gone", lambda: not run.record(first))
        assert said(start(manager, mapper, alice.name, "berta", 2)[1]) == ANSWERS[True]
        assert said(start(manager, mapper, alice.name, "anna", 3)[1]) == ANSWERS[False]


@pytest.mark.parametrize("literal", [False, True])
def test_a_monitor_that_has_adopted_the_first_knows_whose_it_is(alice: LocalAccount, literal: bool) -> None:
    with site("") as run:
        manager, mapper = run.ready()
        start(manager, mapper, alice.name, "anna", 1, literal=literal)
        run.stop(signal.SIGKILL)
        run.start()
        manager, mapper = run.ready()
        assert said(start(manager, mapper, alice.name, "anna", 1, literal=literal)[1]) == ANSWERS[True]
        assert said(start(manager, mapper, alice.name, "berta", 2, literal=literal)[1]) == ANSWERS[literal]


def test_a_keeper_of_an_older_version_may_be_anybodys(alice: LocalAccount) -> None:
    with site("") as run:
        manager, mapper = run.ready()
        first, _ = start(manager, mapper, alice.name, "anna", 1)
        run.stop(signal.SIGKILL)
        run.forget(first, "person", "literal", "identities")
        run.start()
        manager, mapper = run.ready()
        assert said(start(manager, mapper, alice.name, "anna", 1)[1]) == ANSWERS[False]
