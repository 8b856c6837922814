"""User endpoints without a monitor: `mep stop` ends them through their keepers, and ends no other process."""

from __future__ import annotations

import os
import signal
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from mep.boundary.messages import EndpointEnded
from mep.cli.exit_codes import CliFailed
from mep.cli.orphaned_keepers import stop_keepers
from tests.support.accounts import LocalAccount
from tests.support.monitor import MonitorRun, processes_of, running_monitor, start_as
from tests.support.waiting import until


def directories(run: MonitorRun) -> Any:
    return SimpleNamespace(runtime_dir=run.run)


def test_what_a_stop_has_left_is_stopped_later(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        ids = [start_as(manager, mapper, alice.name, ref=ref, mode="orphans")[0] for ref in (1, 2)]
        run.stop(signal.SIGUSR1)
        assert all(run.record(uep_id)["state"] == "running" for uep_id in ids)
        assert stop_keepers(directories(run), 20) == 2
        assert not processes_of(alice.uid)
        assert all(run.record(uep_id)["state"] == "ended" for uep_id in ids)
        assert stop_keepers(directories(run), 20) == 0


def test_what_a_killed_monitor_has_left(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        start_as(manager, mapper, alice.name, mode="ignore-term")
        assert run.process is not None
        run.process.kill()
        run.process.wait()
        assert stop_keepers(directories(run), 20) == 1
        assert not processes_of(alice.uid)


@pytest.mark.parametrize("how", ["killed", "kept"])
def test_the_next_monitor_tells_of_the_ends(alice: LocalAccount, how: str) -> None:
    """Nothing else can: otherwise the relay waits for a silent user endpoint before it asks for another."""
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        if how == "killed":
            assert run.process is not None
            run.process.kill()
            run.process.wait()
        else:
            run.stop(signal.SIGUSR1)
        assert stop_keepers(directories(run), 20) == 1
        run.start()
        manager, mapper = run.ready()
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "STOPPED")
        until("it is forgotten", lambda: not list((run.run / "keepers").iterdir()))


def test_a_keeper_that_does_not_end_is_named(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        run.stop(signal.SIGUSR1)
        os.kill(run.record(uep_id)["keeper_pid"], signal.SIGSTOP)
        with pytest.raises(CliFailed, match=uep_id):
            stop_keepers(directories(run), 0.2)
        os.kill(run.record(uep_id)["keeper_pid"], signal.SIGCONT)
        assert stop_keepers(directories(run), 20) in {0, 1}


def test_a_recycled_pid_is_not_signalled(alice: LocalAccount) -> None:
    with subprocess.Popen(["sleep", "60"]) as other, running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = run.run / "keepers" / f"{uep_id}.json"
        keeper = run.record(uep_id)["keeper_pid"]
        run.stop(signal.SIGUSR1)
        text = record.read_text()
        record.write_text(text.replace(f'"keeper_pid": {keeper}', f'"keeper_pid": {other.pid}'))
        assert stop_keepers(directories(run), 5) == 0
        assert other.poll() is None
        other.kill()
        record.write_text(text)
        assert stop_keepers(directories(run), 20) == 1
