"""How old mappings may become, by a clock of the test's: when it warns, when it ends, and what gives time to ask."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mep.root.monitor.user_endpoints import RunningEndpoint, UepEvent, UepPhase
from tests.support.monitor_parts import PaperKeepers, Parts

INTERVAL_S, LIMIT_S = 10.0, 1000.0
WARN_S = 4 * INTERVAL_S


@pytest.fixture
def parts(tmp_path: pathlib.Path) -> Iterator[Parts]:
    with Parts(tmp_path) as made:
        yield made


class Site:
    """The confirmations of one user endpoint, which was confirmed at 1,000,000 and runs."""

    def __init__(self, parts: Parts, *, interval_s: float = INTERVAL_S, limit_s: float = LIMIT_S) -> None:
        self.parts = parts
        resolved = parts.configuration.resolved
        manager = replace(resolved.manager, recheck_interval_s=interval_s)
        parts.configuration.resolved = replace(resolved, manager=manager, recheck_max_age_s=limit_s)
        self.ended: list[tuple[float, str]] = []
        self.endpoint = parts.running("uep", mapped_at=parts.now)
        self.confirmations = parts.rechecks(EndingKeepers(parts, self))
        self.confirmations.start()

    @property
    def warned(self) -> list[float]:
        """The ages in seconds at which a warning was logged."""
        return [float(record["seconds"]) for record in self.parts.audit_records("overdue")]

    def live(self, seconds: float, step_s: float = 5.0) -> None:
        """Let time pass, and look every `step_s`."""
        end = self.parts.now + seconds
        while self.parts.now < end:
            self.parts.now += step_s
            self.confirmations.look()


class EndingKeepers(PaperKeepers):
    """Paper keepers that note the age at which they end a user endpoint."""

    def __init__(self, parts: Parts, site: Site) -> None:
        super().__init__(parts)
        self._site = site

    def end(self, endpoint: RunningEndpoint, code: str, public: str) -> None:
        """Note the end."""
        self._site.ended.append((self._site.parts.now - endpoint.mapped_at, code))
        endpoint.take(UepEvent.STOP)


def test_it_is_warned_of_after_four_intervals_and_whenever_the_age_has_doubled(parts: Parts) -> None:
    site = Site(parts)
    site.live(LIMIT_S)
    assert site.warned == [WARN_S + 5, 90, 180, 360, 720]
    assert site.ended == []
    site.live(5)
    assert site.ended == [(LIMIT_S + 5, "MAPPING_UNCONFIRMED")]


def test_a_confirmation_begins_anew(parts: Parts) -> None:
    site = Site(parts)
    for _ in range(20):
        site.live(LIMIT_S - 100)
        site.confirmations.confirmed(site.endpoint)
    assert site.ended == []
    assert site.warned[:5] == site.warned[5:10]


@pytest.mark.parametrize(("interval_s", "limit_s", "warned"), [(0.0, LIMIT_S, False), (INTERVAL_S, 0.0, True)])
def test_off_is_off(parts: Parts, interval_s: float, limit_s: float, warned: bool) -> None:
    site = Site(parts, interval_s=interval_s, limit_s=limit_s)
    site.live(100 * LIMIT_S, 50.0)
    assert (bool(site.warned), site.ended) == (warned, [])


def test_a_monitor_that_was_stopped_has_people_asked_about_first(parts: Parts) -> None:
    site = Site(parts)
    site.live(100)
    site.parts.now += 10 * LIMIT_S  # SIGSTOP, or a host that was asleep
    site.confirmations.look()
    assert site.ended == []
    site.live(WARN_S - 5)
    assert site.ended == []
    site.live(10)
    assert [code for _, code in site.ended] == ["MAPPING_UNCONFIRMED"]


def test_one_of_unknown_age_is_young(parts: Parts) -> None:
    site = Site(parts)
    site.endpoint.mapped_at = 0.0
    site.confirmations.start()
    assert site.endpoint.mapped_at == site.parts.now


def test_what_is_starting_or_ending_is_left_alone(parts: Parts) -> None:
    for phase in (UepPhase.STARTING, UepPhase.CANCELLING, UepPhase.STOPPING, UepPhase.ENDED):
        site = Site(parts)
        site.endpoint.phase = phase
        site.live(2 * LIMIT_S)
        assert (site.warned, site.ended) == ([], [])
