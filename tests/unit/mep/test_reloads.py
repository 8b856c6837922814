"""Reloads that are asked for at once: who is told of which, and how many resolvers run."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mep.root.monitor.reload import Reload
from tests.support.monitor_parts import Parts


class Site:
    """A site with a resolver that notes its run and refuses the configuration."""

    def __init__(self, parts: Parts, directory: pathlib.Path) -> None:
        self.parts, self._runs = parts, directory / "runs"
        resolver = directory / "resolver"
        resolver.write_text(f"#!/bin/sh\necho run >> {self._runs}\nexit 3\n")
        resolver.chmod(0o755)
        parts.configuration.resolved = replace(parts.configuration.resolved, resolver_argv=[str(resolver)])
        self.reload = Reload(parts.shared, send_task_log=lambda: None, taken_over=lambda *_: None)
        self.told: list[str] = []

    def ask(self, name: str) -> None:
        self.reload.start(lambda problem: self.told.append(f"{name}: {problem[:33]}"))

    def reap(self) -> None:
        """Wait for the resolver, as the monitor does."""
        pid, status = os.waitpid(self.reload.pid, 0)
        self.reload.reaped(pid, status)
        self.parts.pass_time(0.0)

    @property
    def runs(self) -> int:
        return len(self._runs.read_text().splitlines())


@pytest.fixture
def site(tmp_path: pathlib.Path) -> Iterator[Site]:
    with Parts(tmp_path) as parts:
        yield Site(parts, tmp_path)


FAILED = "the resolver ended with exit status"[:33]


def test_one_asked_for_during_a_reload_is_told_of_the_next(site: Site) -> None:
    """The running resolver may have read the files before they were changed."""
    site.ask("first")
    for name in ("second", "third"):
        site.ask(name)
    site.reap()
    assert site.told == [f"first: {FAILED}"]
    site.reap()
    assert site.told == [f"{name}: {FAILED}" for name in ("first", "second", "third")]
    assert (site.runs, site.reload.pid) == (2, 0)


def test_a_resolver_that_was_stopped_is_replaced_before_anybody_is_told(site: Site) -> None:
    site.ask("first")
    site.reload.replace()
    site.reap()
    assert site.told == [] and site.reload.pid
    site.reap()
    assert site.told == [f"first: {FAILED}"]


def test_an_endpoint_that_stops_says_so(site: Site) -> None:
    site.ask("first")
    site.ask("second")
    site.reload.stop()
    site.reap()
    assert site.told == [f"first: {FAILED}", "second: the endpoint is being stopped"]
    site.ask("third")
    assert site.told[2:] == ["third: the endpoint is being stopped"]
    assert (site.runs, site.reload.pid) == (1, 0)
