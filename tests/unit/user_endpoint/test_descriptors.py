"""How many descriptors a configuration needs, and when work pauses for want of them."""

from __future__ import annotations

import resource

import pytest

from mep_wire.errors import EndpointMisconfigured
from user_endpoint import descriptors
from user_endpoint.descriptors import CHECK_S, Headroom, check_interchange, needed
from user_endpoint.settings import GlobusComputeSettings, ProcessPoolSettings, ThreadPoolSettings


def test_each_worker_counts() -> None:
    assert needed(ProcessPoolSettings(max_workers=100)) == needed(ProcessPoolSettings(max_workers=1)) + 3 * 99
    assert needed(ThreadPoolSettings(max_workers=100)) == needed(ThreadPoolSettings(max_workers=1))
    assert needed(GlobusComputeSettings()) > needed(ThreadPoolSettings())


def test_an_interchange_needs_two_for_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    check_interchange(480)
    with pytest.raises(EndpointMisconfigured) as refused:
        check_interchange(481)
    assert "481 nodes (max_blocks) may need 1026 open files, and the hard limit is 1024" in refused.value.detail


def test_work_pauses_while_the_reserve_is_touched() -> None:
    now, touched = [0.0], [False]
    headroom = Headroom(lambda: now[0], lambda: touched[0])
    assert (headroom.look(), headroom.low, headroom.next_look()) == (False, False, None)
    touched[0] = True
    assert not headroom.look(), "it was looked at just now"
    now[0] += CHECK_S
    assert (headroom.look(), headroom.low, headroom.next_look()) == (True, True, now[0] + CHECK_S)
    now[0] += CHECK_S
    assert not headroom.look() and headroom.low
    touched[0], now[0] = False, now[0] + CHECK_S
    assert (headroom.look(), headroom.low) == (True, False)


def test_the_limit_is_never_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    descriptors.provide(500)
    assert not set_to
    descriptors.provide(2000)
    assert set_to == [(2000, 4096)]
    with pytest.raises(EndpointMisconfigured):
        descriptors.provide(5000)
