"""Idle limits, with the clock in hand."""

from __future__ import annotations

from user_endpoint.lifecycle.idle import IdleRule
from user_endpoint.lifecycle.shutdown import FLUSH_S, RUN_GRACE_S, Stopping
from user_endpoint.settings import ProcessPoolSettings, UepSettings


def test_soft_counts_from_the_last_movement() -> None:
    rule = IdleRule(60, 600, now=0)
    assert rule.verdict(59.9, busy=False) is None
    rule.moved(50)
    assert rule.verdict(109, busy=False) is None
    assert rule.verdict(110, busy=False) == "no task for 60 s"


def test_busy_is_spared_by_soft_and_ended_by_hard() -> None:
    rule = IdleRule(60, 600, now=0)
    assert rule.verdict(599, busy=True) is None
    assert "nothing moved for 600 s" in str(rule.verdict(600, busy=True))


def test_never() -> None:
    rule = IdleRule(None, None, now=0)
    assert rule.deadline(busy=False) is None
    assert rule.verdict(1e9, busy=False) is None
    assert rule.verdict(1e9, busy=True) is None


def test_deadline_is_when_the_verdict_falls() -> None:
    rule = IdleRule(60, 600, now=7)
    assert rule.deadline(busy=False) == 67
    assert rule.deadline(busy=True) == 607


def test_heartbeats_are_the_unit_and_hard_needs_soft() -> None:
    off = UepSettings(engine=ProcessPoolSettings())
    assert (off.idle_soft_s, off.idle_hard_s) == (None, None)
    on = UepSettings(engine=ProcessPoolSettings(), heartbeat_period=10, idle_heartbeats_soft=6, idle_heartbeats_hard=60)
    assert (on.idle_soft_s, on.idle_hard_s) == (60, 600)


def test_stopping_gives_tasks_their_grace_then_results_theirs() -> None:
    stopping = Stopping("STOPPED", "by SIGTERM", now=10)
    assert stopping.next_deadline() == 10 + RUN_GRACE_S
    stopping.hurry(11)
    assert stopping.next_deadline() == 11
    stopping.hurry(99)
    assert stopping.next_deadline() == 11
    stopping.engine_stopped = True
    stopping.flush_from(11.5)
    assert stopping.next_deadline() == 11.5 + FLUSH_S
    assert stopping.error().code == "USER_ENDPOINT_LOST"
