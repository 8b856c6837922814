"""A thousand tasks in flight on the nodes of a real Slurm, behind the whole path, and one part of it dies.

The guarantees for blocks on one host must hold here too. Here the nodes live on when their user endpoint is killed, and
may be out of reach and alive.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sitekit.accounts import processes_of
from sitekit.endpoint import SCHEMA

from tests.support.campus import Campus, make_campus
from tests.support.slurm import Slurm
from tests.support.waiting import until

from .test_main_path import LOSSES, left_files, outcome

pytestmark = pytest.mark.root
TASKS = 1000
END_S = 150
TEMPLATE = """\
heartbeat_period: 5
engine:
  type: GlobusComputeEngine
  address: 127.0.0.1
  max_workers_per_node: 2
  heartbeat_period: 1
  heartbeat_threshold: 20
  job_status_kwargs:
    strategy_period: 0.5
  provider:
    type: SlurmProvider
    partition: cpu
    exclusive: false
    cores_per_node: 2
    walltime: "00:10:00"
    init_blocks: 0
    max_blocks: 1
"""


def mark(path: str, number: int, seconds: float = 0.008) -> None:
    import os
    import time

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, b"%d\n" % number)
    os.close(descriptor)
    time.sleep(seconds)


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    with Slurm(node_timeout_s=15) as made:
        yield made


@pytest.fixture
def campus(slurm: Slurm) -> Iterator[Campus]:
    with make_campus("multi", "faultycluster", TEMPLATE) as made:
        made.endpoint.write("user_environment.yaml", f"SLURM_CONF: {slurm.conf}\n")
        made.endpoint.write(SCHEMA, {"type": "object", "additionalProperties": False})
        made.endpoint.register_again()
        made.endpoint.start()
        yield made


def kill_user_endpoint(slurm: Slurm, campus: Campus) -> None:
    (pid,) = campus.pids().values()
    os.kill(pid, signal.SIGKILL)


def cancel_job(slurm: Slurm, campus: Campus) -> None:
    slurm.run("scancel", *slurm.jobs())


def end_walltime(slurm: Slurm, campus: Campus) -> None:
    (job,) = slurm.jobs()
    slurm.run("scontrol", "update", f"JobId={job}", "EndTime=now+5")  # "now" is past when it arrives


def lose_node(slurm: Slurm, campus: Campus) -> None:
    """Switch the job's node off: its daemon and all that runs there are gone without a word."""
    (job,) = slurm.jobs()
    node = slurm.show(job)["NodeList"]
    here = [slurm.daemons.pop(f"slurmd-{node}")]
    steps = [pid for pid, _ in slurm.steps()]
    account = campus.accounts["alice"]
    pids = [here[0].pid, *steps, *(pid for pid in processes_of(account.uid) if on_node(pid, node))]
    send(signal.SIGSTOP, pids)
    send(signal.SIGKILL, pids)
    here[0].wait()


def freeze_node(slurm: Slurm, campus: Campus) -> None:
    """The node stands still for longer than the threshold, and then goes on as if nothing had been."""
    pids = on_nodes(campus)
    send(signal.SIGSTOP, pids)
    time.sleep(24)
    send(signal.SIGCONT, pids)


def send(signum: int, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, signum)


def on_nodes(campus: Campus) -> list[int]:
    pids = processes_of(campus.accounts["alice"].uid)
    return [pid for pid in pids if on_node(pid, "n1") or on_node(pid, "n2")]


def on_node(pid: int, node: str) -> bool:
    with contextlib.suppress(OSError):
        return f"SLURMD_NODENAME={node}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


CASES: list[Callable[[Slurm, Campus], None]] = [kill_user_endpoint, cancel_job, end_walltime, lose_node, freeze_node]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", CASES, ids=lambda fault: fault.__name__)
def test_every_task_ends_once(slurm: Slurm, campus: Campus, fault: Callable[[Slurm, Campus], None]) -> None:
    account = campus.accounts["alice"]
    ran = account.home / "ran"
    resolved: Counter[int] = Counter()
    with campus.executor("alice") as executor:
        assert executor.submit(pow, 2, 3).result(timeout=60) == 8
        futures = [executor.submit(mark, str(ran), number) for number in range(TASKS)]
        for number, future in enumerate(futures):
            future.add_done_callback(partial(count, resolved, number))
        until("the first results", lambda: sum(resolved.values()) >= 100, look_s=0.005)
        killed_at = sum(resolved.values())
        assert killed_at < TASKS, "too late"
        fault(slurm, campus)
        began = time.monotonic()
        _, undone = wait(futures, timeout=END_S)
        assert not undone, f"{len(undone)} tasks have no end\n{campus.site.logs()}"
        until("every callback", lambda: len(resolved) == TASKS)  # the last ones run after `wait` has returned
        codes = [outcome(future) for future in futures]
    lost = {number for number, code in enumerate(codes) if code}
    print(
        f"{fault.__name__}: {killed_at} done before, {len(lost)} lost, all ended {time.monotonic() - began:.0f} s after"
    )
    assert set(codes) <= {"", *LOSSES}
    assert len(lost) <= 200
    assert set(resolved.values()) == {1}
    times = Counter(int(line) for line in ran.read_text().split())
    assert not [number for number, count in times.items() if count > 1], "run twice"
    assert set(times) | lost == set(range(TASKS))
    nothing_is_left(slurm, campus, account)


def test_what_waits_on_a_node_is_not_begun_there_after_the_next_user_endpoint_has_taken_over(
    slurm: Slurm, campus: Campus
) -> None:
    """The node stands still while its user endpoint is killed, and cannot be told, since the controller is away."""
    account = campus.accounts["alice"]
    ran, notes = account.home / "ran", account.home / ".mep" / "uep"
    with campus.executor("alice") as executor:
        running = [executor.submit(mark, str(ran), number, 1.5) for number in range(2)]
        until("two tasks that run", lambda: ran.exists() and len(ran.read_text().split()) == 2)
        waiting = [executor.submit(mark, str(ran), number) for number in range(2, 12)]
        time.sleep(0.5)  # some of them are at the node now
        node = on_nodes(campus)
        send(signal.SIGSTOP, [*node, slurm.daemons["slurmctld"].pid])
        try:
            kill_user_endpoint(slurm, campus)
            until("look at the notes", lambda: list(notes.glob("*/run/begun/closed/keys-*")))
            send(signal.SIGCONT, node)
            time.sleep(4)
            began = ran.read_text().split()
        finally:
            send(signal.SIGCONT, [*node, slurm.daemons["slurmctld"].pid])
        assert sorted(began) == ["0", "1"]
        wait([*running, *waiting], timeout=END_S)
        assert {outcome(future) for future in running} == {"USER_ENDPOINT_LOST"}
        assert {outcome(future) for future in waiting} == {""}
    assert sorted(map(int, ran.read_text().split())) == list(range(12))
    nothing_is_left(slurm, campus, account)


def count(resolved: Counter[int], number: int, _: object) -> None:
    resolved.update([number])


def nothing_is_left(slurm: Slurm, campus: Campus, account: Any) -> None:
    campus.endpoint.stop()
    until("the end of jobs and processes", lambda: not [*slurm.jobs(), *processes_of(account.uid)])
    assert left_files(account.home) == []
    assert list((campus.endpoint.runtime_dir / "keepers").glob("*")) == []
