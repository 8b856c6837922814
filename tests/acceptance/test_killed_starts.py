"""Each process of a start is killed while tasks wait for it: the tasks run all the same, and each runs once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sitekit.endpoint import TEMPLATE

from tests.support.campus import TEMPLATE_TEXT
from tests.support.waiting import until

RESULT_S = 90
_HELD = """\
{{% for a in range({rendering}) %}}{{% for b in range(1000) %}}{{% endfor %}}{{% endfor %}}
endpoint_setup: |
  touch "{work}/in-setup"
  while test ! -e "{work}/go"; do sleep 0.1; done
"""
"""Templates with these lines render for some seconds, or have their user endpoint wait in its start."""
_HELD_WORKERS = """\
    worker_init: while test ! -e "{work}/go"; do sleep 0.1; done
"""
"""A provider with this line starts workers that wait before they take tasks."""


def _processes() -> Iterator[tuple[int, int, str]]:
    """Yield pid, parent's pid and name of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            name, _, rest = text.partition("(")[2].rpartition(")")
            yield int(entry.name), int(rest.split()[1]), name


def _below(root: int, name: str) -> list[int]:
    """Return every descendant of `root` with this name."""
    found = list(_processes())
    pids = {root}
    for _ in found:
        more = pids | {pid for pid, parent, _ in found if parent in pids}
        if more == pids:
            break
        pids = more
    return sorted(pid for pid, _, named in found if named == name and pid in pids - {root})


def _with_template(campus: Any, *, rendering: int) -> Path:
    """Write a template that makes starts take long. Return the directory of the files that they wait for."""
    text = TEMPLATE_TEXT.partition("endpoint_setup:")[0]
    campus.endpoint.write(TEMPLATE, text + _HELD.format(rendering=rendering, work=campus.site.workplace))
    return Path(campus.accounts[campus.anybody].home)


def _keeper(monitor: int, _: Any) -> list[int]:
    return _below(monitor, "mep-keeper")


def _user_endpoint(monitor: int, _: Any) -> list[int]:
    return [pid for pid, parent, name in _processes() if name == "mep-uep" and parent in _keeper(monitor, None)]


def _renderer(monitor: int, _: Any) -> list[int]:
    parents = _user_endpoint(monitor, None)
    return [pid for pid, parent, name in _processes() if name == "mep-uep" and parent in parents]


@pytest.mark.parametrize("own_place", ["multi"], indirect=True)
@pytest.mark.parametrize("find", [_keeper, _user_endpoint, _renderer], ids=["keeper", "user endpoint", "renderer"])
def test_a_kill_in_mid_start_fails_no_task(own_place: Any, find: Callable[[int, Any], list[int]]) -> None:
    work = _with_template(own_place, rendering=20_000 if find is _renderer else 1)
    own_place.endpoint.start()
    monitor = int(own_place.endpoint.status()["pid"])
    client = own_place.client(own_place.anybody)
    with own_place.executor(own_place.anybody) as executor:
        futures = [executor.submit(_note, str(work / f"ran-{number}")) for number in range(5)]
        for _ in range(3):
            if find is not _renderer:
                until("the set-up", lambda: (work / "in-setup").exists(), RESULT_S)
                (work / "in-setup").unlink()
            victims = until("a process that starts", lambda: find(monitor, None), RESULT_S, look_s=0.01)
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            until("the end of the victims", lambda killed=victims: not set(find(monitor, None)) & set(killed), RESULT_S)
            until("the reason", lambda: "was ended while it was starting" in _reason(client, futures[0]), RESULT_S)
        (work / "go").touch()
        assert [future.result(timeout=RESULT_S) for future in futures] == [1] * 5
    assert all((work / f"ran-{number}").read_text() == "once\n" for number in range(5))


@pytest.mark.parametrize("own_place", ["multi"], indirect=True)
def test_an_interchange_killed_in_mid_start_fails_no_task(own_place: Any) -> None:
    home = Path(own_place.accounts[own_place.anybody].home)
    held = _HELD_WORKERS.format(work=own_place.site.workplace)
    text = TEMPLATE_TEXT.partition("endpoint_setup:")[0]
    own_place.endpoint.write(TEMPLATE, text.replace("    init_blocks:", f"{held}    init_blocks:"))
    own_place.endpoint.start()
    monitor = int(own_place.endpoint.status()["pid"])
    client = own_place.client(own_place.anybody)
    with own_place.executor(own_place.anybody, engine="GlobusComputeEngine", workers=1) as executor:
        futures = [executor.submit(_note, str(home / f"ran-{number}")) for number in range(5)]
        killed: set[int] = set()

        def three_are_killed() -> bool:
            for pid in _below(monitor, "mep-interchange"):
                if pid not in killed and len(killed) < 3:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            return len(killed) == 3

        until("three interchanges to kill", three_are_killed, RESULT_S, look_s=0.02)
        until("the reason", lambda: "interchange failed" in _reason(client, futures[0]), RESULT_S)
        (home / "go").touch()
        assert [future.result(timeout=RESULT_S) for future in futures] == [1] * 5
    assert all((home / f"ran-{number}").read_text() == "once\n" for number in range(5))


def _reason(client: Any, future: Any) -> str:
    return str(client.get_task(future.task_id).get("reason") or "") if future.task_id else ""


def _note(path: str) -> int:
    with open(path, "a") as file:
        file.write("once\n")
    return 1
