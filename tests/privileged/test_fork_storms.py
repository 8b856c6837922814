"""Thousands of processes, some of which fork and exit as fast as they can: a stop ends them all, and no start waits.

Reaping must not delay the killing: neither by the keeper, which adopts the processes, nor by the monitor, which adopts
them after the keeper was killed.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from mep.boundary import cgroup_support
from mep.boundary.messages import EndpointEnded, StopAll
from mep.boundary.resolved_config import Caps
from mep.root.kernel import process_tree, syscalls
from tests.support.accounts import LocalAccount, account
from tests.support.monitor import MonitorRun, Puppet, processes_of, running_monitor, start_as
from tests.support.waiting import until

CHAINS, SLEEPERS = "10", "300"
WAIT_S = 60
SOURCE = pathlib.Path(__file__).parents[1] / "support" / "storm.c"


@pytest.fixture(scope="module")
def storm() -> Iterator[str]:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="meptest-storm-"))
    directory.chmod(0o755)
    subprocess.run(["gcc", "-O2", "-o", directory / "storm", SOURCE], check=True)
    yield str(directory / "storm")
    shutil.rmtree(directory)


@pytest.fixture
def alice() -> Iterator[LocalAccount]:
    with account() as made:
        yield made
        end_all_of(made.uid)


@pytest.fixture
def bob() -> Iterator[LocalAccount]:
    with account() as made:
        yield made


def end_all_of(uid: int) -> None:
    """Whatever became of the test: nothing of the account is left."""
    pid = os.fork()
    if pid == 0:
        os.setresuid(uid, uid, uid)
        try:
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def storming(manager: Puppet, mapper: Puppet, who: LocalAccount, program: str, ref: int = 1) -> str:
    """Start a user endpoint that runs a fork storm; return its id."""
    for puppet in (manager, mapper):
        puppet.wait_at_most(WAIT_S)
    uep_id, answer = start_as(
        manager, mapper, who.name, ref=ref, mode="storm", program=program, words=[CHAINS, SLEEPERS]
    )
    assert answer.outcome == "started"
    until("the storm is there", lambda: len(processes_of(who.uid)) > int(SLEEPERS))
    return uep_id


def started_at_last(manager: Puppet, mapper: Puppet, who: LocalAccount) -> None:
    """Another person's start succeeds. If the host had no room for a process at that moment, the next request does."""
    for ref in range(2, 12):
        outcome = start_as(manager, mapper, who.name, ref=ref)[1].outcome
        if outcome != "unavailable":
            break
    assert outcome == "started"


def test_no_descendant_is_left_of_a_storm(alice: LocalAccount, storm: str) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.become_subreaper()
            if os.fork() == 0:
                os.setsid()
                os.setresuid(alice.uid, alice.uid, alice.uid)
                os.execv(storm, ["storm", CHAINS, SLEEPERS])
            until("the storm is there", lambda: len(processes_of(alice.uid)) > int(SLEEPERS))
            process_tree.kill_descendants()
        finally:
            os._exit(0)
    until("the storm is over", lambda: os.waitpid(pid, os.WNOHANG)[0], WAIT_S)
    until("nothing is left", lambda: processes_of(alice.uid) == [])


def test_a_storm_is_ended_by_a_stop(alice: LocalAccount, bob: LocalAccount, storm: str) -> None:
    with running_monitor(caps=Caps(stop_grace_s=1.0)) as (run, manager, mapper):
        uep_id = storming(manager, mapper, alice, storm)
        started_at_last(manager, mapper, bob)
        group = run.record(uep_id).get("cgroup", "")
        assert bool(group) == cgroup_support.can_group(), "a group makes the end sure"
        manager.send(StopAll(reason="deleted"))
        ended = [manager.take(EndpointEnded)[0] for _ in range(2)]
        assert {one.uep_id for one in ended} > {uep_id}
        until("nothing is left", lambda: processes_of(alice.uid) == [])
        if group:
            until("the group is gone", lambda: not os.path.exists(group))
        run.stop(seconds=WAIT_S)


def test_a_storm_whose_keeper_was_killed_keeps_the_monitor_from_nothing(
    alice: LocalAccount, bob: LocalAccount, storm: str
) -> None:
    with running_monitor(caps=Caps(stop_grace_s=1.0)) as (run, manager, mapper):
        uep_id = storming(manager, mapper, alice, storm)
        os.kill(run.record(uep_id)["keeper_pid"], signal.SIGKILL)
        started_at_last(manager, mapper, bob)
        until("the storm is over", lambda: not processes_of(alice.uid), WAIT_S)
        said = [line for line in run.log_text().splitlines() if "left" in line]
        assert len(said) <= 20, "a line for each process would fill the disk"  # two for each pass that found some
        run.stop(seconds=WAIT_S)


def test_a_keeper_that_does_not_end_its_user_endpoint_is_ended_itself(alice: LocalAccount) -> None:
    """While stopped, it cannot hear: the monitor has a separate timer for every stop."""
    with MonitorRun(caps=Caps(stop_grace_s=0.5)) as run:
        manager, mapper = run.ready()
        manager.wait_at_most(WAIT_S)
        uep_id, answer = start_as(manager, mapper, alice.name, mode="ignore-term")
        assert answer.outcome == "started"
        os.kill(run.record(uep_id)["keeper_pid"], signal.SIGSTOP)
        manager.send(StopAll(reason="deleted"))
        assert manager.take(EndpointEnded)[0].uep_id == uep_id
        until("nothing is left", lambda: not processes_of(alice.uid), WAIT_S)
        run.stop()
