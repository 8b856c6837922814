"""User endpoints without a monitor: `mep stop` ends them through their keepers, and ends no other process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mep.boundary.messages import EndpointEnded
from mep.boundary.runtime_files import open_keeper
from mep.cli.exit_codes import CliFailed
from mep.cli.orphaned_keepers import end_former_version, stop_keepers
from tests.support.accounts import LocalAccount
from tests.support.monitor import MonitorRun, new_uep_id, processes_of, running_monitor, start_as
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
        keeper = run.record(uep_id)["keeper_pid"]
        run.stop(signal.SIGUSR1)
        os.kill(keeper, signal.SIGKILL)
        until("its lock is free", lambda: open_keeper(run.record_path(uep_id).parent) is None)
        record = run.record_path(uep_id)
        record.write_text(record.read_text().replace(f'"keeper_pid": {keeper}', f'"keeper_pid": {other.pid}'))
        assert stop_keepers(directories(run), 5) == 0
        assert other.poll() is None
        other.kill()


_FORMER = """
import json, os, signal, sys, time
from mep.boundary.runtime_files import boot_id, start_ticks
path, uep_id, deaf = sys.argv[1:4]
record = {
    "uep_id": uep_id, "local_user": "alice", "correlation_id": "c", "boot_id": boot_id(), "started_at": time.time(),
    "keeper_pid": os.getpid(), "keeper_start": start_ticks(os.getpid()), "state": "running", "uid": 1, "uep_pid": 0,
    "uep_start": 0, "source": "files", "executable": sys.executable,
}
def write():
    with open(path, "w") as file:
        json.dump(record, file)
def end(*_):
    if not deaf:
        record.update(state="ended", code="STOPPED", public="The endpoint's administrator stopped it.")
        write()
        os._exit(0)
signal.signal(signal.SIGTERM, end)
write()
print("ready", flush=True)
time.sleep(600) or time.sleep(600)
"""


@contextlib.contextmanager
def former_keeper(run: MonitorRun, *, deaf: bool = False) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Stands in for a keeper of the previous version: a record in a file of its own, SIGTERM to end it, no lock."""
    uep_id, directory = new_uep_id(), run.run / "keepers"
    directory.mkdir(mode=0o700, exist_ok=True)
    words = [sys.executable, "-c", _FORMER, str(directory / f"{uep_id}.json"), uep_id, "deaf" if deaf else ""]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as made:
        try:
            assert made.stdout is not None and made.stdout.readline() == "ready\n"
            (directory / f"{uep_id}.mapped").write_text("boot 1.0 00\n")
            yield uep_id, made
        finally:
            made.kill()


@pytest.mark.parametrize(("deaf", "code"), [(False, "STOPPED"), (True, "USER_ENDPOINT_LOST")])
def test_keepers_of_the_previous_version_are_ended_and_told_of(deaf: bool, code: str) -> None:
    with running_monitor() as (run, _, _):
        run.stop(signal.SIGUSR1)
        with former_keeper(run, deaf=deaf) as (uep_id, keeper):
            assert end_former_version(directories(run), 0.5 if deaf else 60.0) == 1
            assert keeper.wait(60) == (-signal.SIGKILL if deaf else 0)
        assert end_former_version(directories(run)) == 0
        assert [path.name for path in (run.run / "keepers").iterdir()] == [uep_id]
        run.start()
        ended = run.ready()[0].take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, code)
        until("it is forgotten", lambda: not list((run.run / "keepers").iterdir()))


def test_a_recycled_pid_of_the_previous_version_is_not_signalled() -> None:
    with subprocess.Popen(["sleep", "60"]) as other, running_monitor() as (run, _, _):
        run.stop(signal.SIGUSR1)
        with former_keeper(run) as (uep_id, keeper):
            path = run.run / "keepers" / f"{uep_id}.json"
            record = {**json.loads(path.read_text()), "keeper_pid": other.pid}  # the start time stays the former's
            keeper.kill()
            keeper.wait()
            path.write_text(json.dumps(record))
            assert end_former_version(directories(run)) == 0
        assert other.poll() is None
        other.kill()


def test_a_stop_ends_keepers_of_the_previous_version_too() -> None:
    with running_monitor() as (run, _, _):
        run.stop(signal.SIGUSR1)
        with former_keeper(run) as (_, keeper):
            assert stop_keepers(directories(run), 60) == 1
            assert keeper.wait(60) == 0
