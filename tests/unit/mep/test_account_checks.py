"""A checker's report covers the processes that existed when it was forked, and no later one."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from mep.boundary.channel import Channel
from mep.root.account.account_check import Subject
from mep.root.monitor.child import Child, ChildKind, Phase
from tests.support.monitor_parts import Parts

SUBJECT = Subject("alice", 1000, "files")


@pytest.fixture
def parts(tmp_path: pathlib.Path) -> Iterator[Parts]:
    with Parts(tmp_path) as made:
        yield made


@pytest.fixture
def checker(parts: Parts) -> Iterator[Child]:
    """A checker as the monitor sees it, of a process that there isn't."""
    ours, theirs = Channel.pair()
    yield Child(ChildKind.CHECKER, 99, ours, Phase.ADMITTING, parts.loop)
    ours.close()
    theirs.close()


def test_a_late_refusal_of_an_account_ends_only_what_was_there_when_it_was_asked(parts: Parts, checker: Child) -> None:
    first, other = parts.running("one"), parts.running("other")
    rechecks = parts.rechecks()
    rechecks._checkers[checker.pid] = SUBJECT, rechecks._of(SUBJECT)
    second = parts.running("one")  # the account was made again since, and a keeper has admitted it
    rechecks.account_checked(checker, "gone")
    assert parts.revoked == [(other, "ACCOUNT_REFUSED")]
    assert first is not second


def test_what_a_checker_finds_in_order_is_noted_of_the_same(parts: Parts, checker: Child) -> None:
    first = parts.running("one")
    rechecks = parts.rechecks()
    rechecks._checkers[checker.pid] = SUBJECT, rechecks._of(SUBJECT)
    later = parts.running("two")
    rechecks.account_checked(checker, "")
    assert (first.admitted_at, later.admitted_at) == (parts.now, 0.0)
