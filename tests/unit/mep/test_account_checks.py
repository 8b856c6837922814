"""The monitor's part in account checks: which policy a keeper has, and what its answers change."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mep.boundary.channel import Channel
from mep.boundary.memfd import read_sealed
from mep.boundary.messages import CheckAccount
from mep.boundary.resolved_config import Policy
from mep.root.account.account_check import AccountChecks
from mep.root.account.lookup import AccountRules
from mep.root.monitor.child import Child, ChildKind, Phase
from mep.root.monitor.rechecks import Rechecks
from mep.root.monitor.user_endpoints import RunningEndpoint, UepPhase
from tests.support.monitor_parts import Parts, received


@pytest.fixture
def parts(tmp_path: pathlib.Path) -> Iterator[Parts]:
    with Parts(tmp_path) as made:
        yield made


class Keeper:
    """A keeper that the test plays."""

    def __init__(self, parts: Parts, uep_id: str) -> None:
        ours, self.channel = Channel.pair()
        self.endpoint: RunningEndpoint = parts.running(uep_id)
        self.endpoint.keeper = Child(ChildKind.KEEPER, 7, ours, Phase.RUNNING, parts.loop)
        parts.loop.watch(ours.fileno(), lambda: None)

    def told(self) -> list[AccountChecks]:
        """Return the policies that have arrived."""
        found = []
        for message, descriptors in received(self.channel):
            assert isinstance(message, CheckAccount)
            found.append(AccountChecks.from_json(read_sealed(descriptors[0], 1 << 20)))
            os.close(descriptors[0])
        return found

    def close(self) -> None:
        assert self.endpoint.keeper is not None
        self.endpoint.keeper.close()
        self.channel.close()


@pytest.fixture
def keeper(parts: Parts) -> Iterator[Keeper]:
    made = Keeper(parts, "one")
    yield made
    made.close()


@pytest.fixture
def rechecks(parts: Parts) -> Rechecks:
    return parts.rechecks()


def reload(parts: Parts, *, min_uid: int) -> None:
    parts.configuration.resolved = replace(parts.configuration.resolved, policy=Policy(min_uid=min_uid))


def test_the_document_reads_back() -> None:
    rules = AccountRules(Policy(min_uid=5, denied_users=["bob"]), ("mep",), (7, 8), None)
    checks = AccountChecks(rules, 1.5, "sshd")
    assert AccountChecks.from_json(checks.to_json()) == checks
    single = AccountChecks(replace(rules, only_uid=1000), 0.0)
    assert AccountChecks.from_json(single.to_json()) == single


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"rules": {"policy": {"unknown": 1}}}'])
def test_a_document_of_another_version_is_refused(text: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        AccountChecks.from_json(text)


def test_one_question_at_a_time_with_the_policy_in_force(parts: Parts, keeper: Keeper, rechecks: Rechecks) -> None:
    """A keeper that is stopped gets no second descriptor. After its answer, it gets the changed policy."""
    rechecks.all_now()
    reload(parts, min_uid=2000)
    rechecks.all_now()
    reload(parts, min_uid=3000)
    rechecks.all_now()
    assert [one.rules.policy.min_uid for one in keeper.told()] == [Policy().min_uid]
    rechecks.account_checked("one")
    assert [one.rules.policy.min_uid for one in keeper.told()] == [3000]
    rechecks.account_checked("one")
    assert keeper.told() == []


def test_a_keeper_that_started_by_an_older_policy_gets_the_present_one(
    parts: Parts, keeper: Keeper, rechecks: Rechecks
) -> None:
    keeper.endpoint.checked_by = parts.configuration.resolved
    rechecks.account_checked("one")
    assert keeper.told() == []
    reload(parts, min_uid=2000)
    rechecks.account_checked("one")
    assert [one.rules.policy.min_uid for one in keeper.told()] == [2000]


def test_what_a_keeper_finds_in_order_is_noted_of_its_own(parts: Parts, keeper: Keeper, rechecks: Rechecks) -> None:
    other = parts.running("two")
    rechecks.account_checked("one")
    assert (keeper.endpoint.admitted_at, other.admitted_at) == (parts.now, 0.0)


def test_a_refused_account_is_revoked_once(parts: Parts, keeper: Keeper, rechecks: Rechecks) -> None:
    other = parts.running("two")
    rechecks.account_refused("one", "gone")
    assert parts.revoked == [(keeper.endpoint, "ACCOUNT_REFUSED")]
    keeper.endpoint.phase = UepPhase.STOPPING
    rechecks.account_refused("one", "gone")
    assert len(parts.revoked) == 1 and other.runs
