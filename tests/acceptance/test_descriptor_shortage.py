"""A process that finds no free descriptor lives on: tasks wait, and go on when there are some again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.campus import make_campus
from tests.support.waiting import until

RESULT_S = 90
TEMPLATE = "engine: {type: ProcessPoolEngine, max_workers: 1}\n# {{ project | default('') }}\n"
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def site() -> Iterator[Any]:
    with make_campus("multi", "descriptors", TEMPLATE) as made:
        made.endpoint.start()
        yield made


def processes(site: Any) -> tuple[int, str]:
    """Return the monitor's pid and its children, which are manager and mapper while no user endpoint runs."""
    monitor = int(site.endpoint.status()["pid"])
    words = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in _children(monitor)]
    helpers = [pid for pid, line in zip(_children(monitor), words, strict=True) if b"mep.ma" in line]
    return monitor, str(helpers)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def limit(pid: int, number: int) -> None:
    subprocess.run(["prlimit", f"--pid={pid}", f"--nofile={number}:"], check=True)


@pytest.mark.parametrize("left", [0, 1, 2, 6])
def test_a_start_waits_until_the_monitor_has_descriptors_again(site: Any, left: int) -> None:
    """Whichever step of a start meets the shortage, nothing is killed, and the task is run."""
    before = processes(site)
    limit(before[0], len(list(Path(f"/proc/{before[0]}/fd").iterdir())) + left)
    try:
        with site.executor("alice", project=f"left {left}") as executor:
            waiting = executor.submit(pow, 2, 4)
            until("it is asked for", lambda: waiting.task_id, seconds=RESULT_S)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=3)
            limit(before[0], 500)
            assert waiting.result(timeout=RESULT_S) == 16
    finally:
        limit(before[0], 500)
    assert processes(site) == before
