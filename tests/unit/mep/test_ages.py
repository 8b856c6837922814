"""How old mappings may become, by a clock of the test's: when it warns, when it ends, and what gives time to ask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mep.root.monitor.mapping_confirmations import Ages
from mep.root.monitor.user_endpoints import UserEndpoint

INTERVAL_S, LIMIT_S = 10.0, 1000.0
WARN_S = 4 * INTERVAL_S


class Site:
    """The parts of a monitor that Ages needs, with one user endpoint that was confirmed at 1,000,000."""

    def __init__(self, *, interval_s: float = INTERVAL_S, limit_s: float = LIMIT_S) -> None:
        self.now = 1_000_000.0
        self.warned: list[float] = []
        self.ended: list[tuple[float, str]] = []
        self.endpoint = UserEndpoint("uep", "alice", "c-1", 7, None, ready=True, mapped_at=self.now)
        manager = SimpleNamespace(recheck_interval_s=interval_s)
        stub: Any = SimpleNamespace(
            loop=SimpleNamespace(clock=lambda: self.now),
            resolved=SimpleNamespace(manager=manager, recheck_max_age_s=limit_s),
            endpoints={"uep": self.endpoint},
            stopping=False,
            log=SimpleNamespace(warning=self._warning, info=lambda *_, **__: None, error=self._warning),
            audit=SimpleNamespace(write=lambda *_, **__: True),
            status=SimpleNamespace(link_state="up", changed=lambda: None),
            records=SimpleNamespace(note_mapped=lambda *_: None),
        )
        self.ages = Ages(cast("Any", stub), self._end)
        self.ages.start()

    def _warning(self, *_: object, **__: object) -> None:
        self.warned.append(self.now - self.endpoint.mapped_at)

    def _end(self, endpoint: UserEndpoint, code: str, *_: str) -> None:
        self.ended.append((self.now - endpoint.mapped_at, code))
        endpoint.ending = True

    def live(self, seconds: float, step_s: float = 5.0) -> None:
        """Let time pass, and look every `step_s`."""
        end = self.now + seconds
        while self.now < end:
            self.now += step_s
            self.ages.look()


def test_it_is_warned_of_after_four_intervals_and_whenever_the_age_has_doubled() -> None:
    site = Site()
    site.live(LIMIT_S)
    assert site.warned == [WARN_S + 5, 90, 180, 360, 720]
    assert site.ended == []
    site.live(5)
    assert site.ended == [(LIMIT_S + 5, "MAPPING_UNCONFIRMED")]


def test_a_confirmation_begins_anew() -> None:
    site = Site()
    for _ in range(20):
        site.live(LIMIT_S - 100)
        site.ages.confirmed(site.endpoint, site.now)
    assert site.ended == []
    assert site.warned[:5] == site.warned[5:10]


@pytest.mark.parametrize(("interval_s", "limit_s", "warned"), [(0.0, LIMIT_S, False), (INTERVAL_S, 0.0, True)])
def test_off_is_off(interval_s: float, limit_s: float, warned: bool) -> None:
    site = Site(interval_s=interval_s, limit_s=limit_s)
    site.live(100 * LIMIT_S, 50.0)
    assert (bool(site.warned), site.ended) == (warned, [])


def test_a_monitor_that_was_stopped_has_people_asked_about_first() -> None:
    site = Site()
    site.live(100)
    site.now += 10 * LIMIT_S  # SIGSTOP, or a host that was asleep
    site.ages.look()
    assert site.ended == []
    site.live(WARN_S - 5)
    assert site.ended == []
    site.live(10)
    assert [code for _, code in site.ended] == ["MAPPING_UNCONFIRMED"]


def test_one_of_unknown_age_is_young() -> None:
    site = Site()
    site.endpoint.mapped_at = 0.0
    site.ages.start()
    assert site.endpoint.mapped_at == site.now


def test_what_is_starting_or_ending_is_left_alone() -> None:
    for state in ({"ready": False}, {"ending": True}):
        site = Site()
        for name, value in state.items():
            setattr(site.endpoint, name, value)
        site.live(2 * LIMIT_S)
        assert (site.warned, site.ended) == ([], [])
