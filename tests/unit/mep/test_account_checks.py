"""A checker's report covers the processes that existed when it was forked, and no later one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mep.root.account.recheck_process import Subject
from mep.root.monitor.rechecks import Rechecks
from mep.root.monitor.user_endpoints import UserEndpoint


class Site:
    """The parts of a monitor that Rechecks needs."""

    def __init__(self) -> None:
        self.revoked: list[UserEndpoint] = []
        self.endpoints: dict[str, UserEndpoint] = {}
        nothing = SimpleNamespace(
            write=lambda *_, **__: True, info=lambda *_, **__: None, warning=lambda *_, **__: None
        )
        stub: Any = SimpleNamespace(
            loop=SimpleNamespace(clock=lambda: 5.0, after=lambda *_: None),
            endpoints=self.endpoints,
            log=nothing,
            audit=nothing,
            tell_revoked=lambda *_: None,
            keepers=SimpleNamespace(revoke=lambda endpoint, *_: self.revoked.append(endpoint)),
        )
        self.rechecks = Rechecks(stub)

    def runs(self, uep_id: str) -> UserEndpoint:
        endpoint = UserEndpoint(uep_id, "alice", "c", 7, None, uid=1000, ready=True)
        self.endpoints[uep_id] = endpoint
        return endpoint


def test_a_late_refusal_of_an_account_ends_only_what_was_there_when_it_was_asked() -> None:
    site = Site()
    first, other = site.runs("one"), site.runs("other")
    subject = Subject("alice", 1000, "files")
    site.rechecks._checkers[99] = subject, site.rechecks._of(subject)
    second = site.runs("one")  # the account was made again since, and a keeper has admitted it
    child: Any = SimpleNamespace(pid=99)
    site.rechecks.account_checked(child, "gone")
    assert site.revoked == [other]
    assert first not in site.revoked and second not in site.revoked


def test_what_a_checker_finds_in_order_is_noted_of_the_same() -> None:
    site = Site()
    first = site.runs("one")
    subject = Subject("alice", 1000, "files")
    site.rechecks._checkers[99] = subject, site.rechecks._of(subject)
    later = site.runs("two")
    child: Any = SimpleNamespace(pid=99)
    site.rechecks.account_checked(child, "")
    assert (first.admitted_at, later.admitted_at) == (5.0, 0.0)
