"""Restarts without disturbance: manager, mapper, monitor and keepers killed under running user endpoints."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from mep.boundary.cgroup_support import can_group, tree
from mep.boundary.messages import EndpointEnded, EndpointRunning, ManagerReady, MapperEpoch, MapperReady
from mep.boundary.resolved_config import to_json
from mep.boundary.runtime_files import running_monitor as holder_of
from mep.boundary.runtime_files import start_ticks
from tests.support.accounts import LocalAccount
from tests.support.monitor import (
    MonitorRun,
    Puppet,
    ask,
    gone,
    map_next,
    processes_of,
    running_monitor,
    start_as,
)
from tests.support.waiting import until


def restart(run: MonitorRun) -> tuple[Puppet, Puppet]:
    """Kill the monitor and start another one on the same directory."""
    run.stop(signal.SIGKILL)
    run.start()
    return run.ready()


def test_manager_is_restarted_and_told_what_runs(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = run.record(uep_id)
        manager.kill()
        again = run.puppet("manager")
        again.send(ManagerReady(version="again"))
        again.take(MapperEpoch)
        assert again.take(EndpointRunning)[0].uep_id == uep_id
        assert not gone(record["uep_pid"], record["uep_start"])
        assert start_as(again, mapper, alice.name, ref=1, uep_id=uep_id)[1].outcome == "already_running"


def test_end_while_there_is_no_manager_is_told_to_the_next(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        manager.kill()
        until("manager is gone", manager.is_gone)
        os.kill(run.record(uep_id)["uep_pid"], signal.SIGKILL)
        until("its record is gone", lambda: not run.record(uep_id))
        again = run.puppet("manager")
        again.send(ManagerReady(version="again"))
        ended = again.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "USER_ENDPOINT_LOST")


def test_end_that_a_manager_died_with_is_told_to_the_next(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        os.kill(run.record(uep_id)["uep_pid"], signal.SIGKILL)
        assert manager.take(EndpointEnded)[0].uep_id == uep_id
        manager.kill()
        again = run.puppet("manager")
        again.send(ManagerReady(version="again"))
        ended = again.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "USER_ENDPOINT_LOST")


def test_mapper_is_restarted_and_user_endpoints_live(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = run.record(uep_id)
        mapper.kill()
        run.puppet("mapper").send(MapperReady(epoch=b"e" * 16))
        while manager.take(MapperEpoch)[0].epoch != b"e" * 16:
            pass
        assert not gone(record["uep_pid"], record["uep_start"])


def test_keeper_outlives_the_monitor_and_is_adopted(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        before = run.record(uep_id)
        manager, mapper = restart(run)
        assert manager.take(EndpointRunning)[0].uep_id == uep_id
        assert run.record(uep_id) == before
        assert start_as(manager, mapper, alice.name, uep_id=uep_id)[1].outcome == "already_running"
        shown = {"uep_id": uep_id, "local_user": alice.name, "pid": before["uep_pid"], "state": "running"}
        until("shown", lambda: [{key: one[key] for key in shown} for one in run.status()["user_endpoints"]] == [shown])
        os.kill(before["uep_pid"], signal.SIGKILL)
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "USER_ENDPOINT_LOST")
        until("nothing is left", lambda: not run.record(uep_id))


def test_end_while_there_is_no_monitor_is_read_from_the_record(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, mode="term-ends")
        run.stop(signal.SIGKILL)
        os.kill(run.record(uep_id)["uep_pid"], signal.SIGTERM)
        record = until("exit record", lambda: run.record(uep_id)["state"] == "ended" and run.record(uep_id))
        until("keeper is gone", lambda: gone(record["keeper_pid"], record["keeper_start"]))
        assert (record["code"], record["public"]) == ("IDLE", "nothing to do")
        run.start()
        manager, _ = run.ready()
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code, ended.public) == (uep_id, "IDLE", "nothing to do")
        assert not run.record(uep_id)


def test_adopted_user_endpoint_is_stopped_by_the_new_monitor(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = run.record(uep_id)
        restart(run)
        assert run.stop() == 0
        assert gone(record["uep_pid"], record["uep_start"]) and gone(record["keeper_pid"], record["keeper_start"])
        assert not list((run.run / "keepers").iterdir())


def test_recycled_pid_is_neither_adopted_nor_signalled(alice: LocalAccount) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        with running_monitor() as (run, manager, mapper):
            uep_id, _ = start_as(manager, mapper, alice.name)
            run.stop(signal.SIGKILL)
            record = run.record(uep_id)
            os.kill(record["keeper_pid"], signal.SIGKILL)
            until("the user endpoint ends with it", lambda: gone(record["uep_pid"], record["uep_start"]))
            record.update(keeper_pid=bystander.pid, uep_pid=bystander.pid)  # start times stay those of the dead
            run.record_path(uep_id).write_text(json.dumps(record))
            run.start()
            manager, _ = run.ready()
            assert manager.take(EndpointEnded)[0].uep_id == uep_id
            run.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_record_of_another_boot_is_not_believed(alice: LocalAccount) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    group = pathlib.Path(tree() or "/nowhere", alice.name)  # a cgroup with a session's name may now be anyone's
    try:
        if can_group():
            group.mkdir()
            (group / "cgroup.procs").write_text(str(bystander.pid))
        with running_monitor() as (run, manager, mapper):
            uep_id, _ = start_as(manager, mapper, alice.name)
            record = {**run.record(uep_id), "boot_id": "another", "cgroup": str(group)}
            started = start_ticks(bystander.pid)
            run.stop()
            for kind in ("keeper", "uep"):
                record.update({f"{kind}_pid": bystander.pid, f"{kind}_start": started})
            run.record_path(uep_id).parent.mkdir(mode=0o700)
            run.record_path(uep_id).write_text(json.dumps(record))
            run.start()
            assert run.ready()[0].take(EndpointEnded)[0].uep_id == uep_id
            run.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        if group.exists():
            group.rmdir()


def test_keeper_killed_takes_its_user_endpoint_along(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, mode="orphans")
        record = run.record(uep_id)
        os.kill(record["keeper_pid"], signal.SIGKILL)
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "USER_ENDPOINT_LOST")
        until("the user endpoint is gone", lambda: gone(record["uep_pid"], record["uep_start"]))
        until("its orphans are gone", lambda: not processes_of(alice.uid))


def test_sigterm_to_a_keeper_stops_its_user_endpoint(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, mode="ignore-term")
        os.kill(run.record(uep_id)["keeper_pid"], signal.SIGTERM)
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "STOPPED")


def test_stop_leaves_nothing(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        records = [run.record(start_as(manager, mapper, alice.name, ref=ref, mode="orphans")[0]) for ref in (1, 2)]
        assert holder_of(run.run) == run.pid
        until("status is up", lambda: run.status().get("state") == "up" and len(run.status()["user_endpoints"]) == 2)
        assert (run.run / "status.json").stat().st_mode & 0o777 == 0o600
        assert "alice@example.edu" not in (run.run / "status.json").read_text()
        assert run.stop() == 0
        for record in records:
            assert gone(record["uep_pid"], record["uep_start"]) and gone(record["keeper_pid"], record["keeper_start"])
        assert not processes_of(alice.uid)
        assert {path.name for path in run.run.rglob("*")} == {"admin", "keepers", "lock", "monitor"}, (
            "and the lock's file"
        )
        assert holder_of(run.run) is None


def test_stop_that_keeps_user_endpoints(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = run.record(uep_id)
        assert run.stop(signal.SIGUSR1) == 0
        assert not gone(record["uep_pid"], record["uep_start"])
        run.start()
        assert run.ready()[0].take(EndpointRunning)[0].uep_id == uep_id


def test_second_monitor_is_refused(alice: LocalAccount) -> None:
    with running_monitor() as (run, _manager, _mapper):
        first = run.process
        run.start()
        assert run.process is not None and run.process.wait(15) == 1
        run.process = first
        assert "another monitor of this endpoint runs" in run.log_text()


# --- reload -----------------------------------------------------------------------------------------------------

RESOLVER = """
import os, sys
config, bundle = int(sys.argv[2]), int(sys.argv[4])
os.write(config, open({path!r}, "rb").read())
os.write(bundle, b"another bundle")
sys.exit({status})
"""


def reload(run: MonitorRun, document: bytes, status: int = 0) -> None:
    new = run.root / "new.json"
    new.write_bytes(document)
    (run.root / "resolver.py").write_text(RESOLVER.format(path=str(new), status=status))
    os.kill(run.pid, signal.SIGHUP)


def with_resolver(run: MonitorRun) -> None:
    script = str(run.root / "resolver.py")
    run.resolved = replace(run.resolved, resolver_argv=[sys.executable, "-I", script])


def test_reload_restarts_only_what_changed(alice: LocalAccount) -> None:
    run = MonitorRun()
    with_resolver(run)
    with run:
        manager, mapper = run.ready()
        uep_id, _ = start_as(manager, mapper, alice.name)
        caps = replace(run.resolved.caps, max_user_endpoints_per_user=1)
        changed = replace(run.resolved.manager, log_level="DEBUG")
        reload(run, to_json(replace(run.resolved, caps=caps, manager=changed)))
        until("reloaded", lambda: "configuration reloaded" in run.log_text())
        manager.close()
        again = run.puppet("manager")
        assert b'"log_level": "DEBUG"' in os.pread(again.section, 65536, 0)
        assert not mapper.is_gone()
        again.send(ManagerReady(version="again"))
        assert start_as(again, mapper, alice.name)[1].code == "PERSON_LIMIT"
        assert run.record(uep_id)["state"] == "running"


@pytest.mark.parametrize(
    ("document", "status", "reason"),
    [
        (b"{}", 0, "missing"),
        (b"not json", 0, "not JSON"),
        (b"", 2, "exit status 2"),
    ],
)
def test_bad_document_leaves_the_old_one(alice: LocalAccount, document: bytes, status: int, reason: str) -> None:
    run = MonitorRun()
    with_resolver(run)
    with run:
        manager, mapper = run.ready()
        reload(run, document, status)
        until("refused", lambda: "the old one stays in force" in run.log_text())
        assert reason in run.log_text()
        assert start_as(manager, mapper, alice.name, write=f"{alice.home}/out")[1].outcome == "started"
        assert "the bundle" in pathlib.Path(alice.home, "out").read_text()


def test_what_cannot_change_while_it_runs(alice: LocalAccount) -> None:
    run = MonitorRun()
    with_resolver(run)
    with run:
        run.ready()
        reload(run, to_json(replace(run.resolved, runtime_dir="/elsewhere")))
        until("refused", lambda: "runtime_dir: cannot change" in run.log_text())


# --- the monitor killed in the middle of a start -----------------------------------------------------------------


def test_start_goes_on_without_the_monitor_and_is_adopted(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        ask(manager, 1)
        uep_id = map_next(mapper, alice.name, delay_s=0.5)
        until("it is spawned", lambda: run.record(uep_id).get("uep_pid"))
        run.stop(signal.SIGKILL)
        until("it is ready", lambda: run.record(uep_id)["state"] == "running")
        run.start()
        assert run.ready()[0].take(EndpointRunning)[0].uep_id == uep_id


def test_start_that_fails_without_the_monitor_leaves_a_record(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        ask(manager, 1)
        uep_id = map_next(mapper, alice.name, mode="fail", delay_s=0.5)
        until("it is spawned", lambda: run.record(uep_id).get("uep_pid"))
        run.stop(signal.SIGKILL)
        record = until("the exit record", lambda: run.record(uep_id).get("state") == "ended" and run.record(uep_id))
        assert record["code"] == "ENDPOINT_MISCONFIGURED"
        until("the keeper is gone", lambda: gone(record["keeper_pid"], record["keeper_start"]))
        run.start()
        ended = run.ready()[0].take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "ENDPOINT_MISCONFIGURED")


def test_what_was_there_before_the_monitor_is_left_alone() -> None:
    """A shell that had a child and then became the monitor by exec."""
    run = MonitorRun()
    run.before = ["sh", "-c", 'sleep 60 & echo $! > "$0"; exec "$@"', str(run.root / "sleeper")]
    with run:
        manager, _ = run.ready()
        sleeper = int((run.root / "sleeper").read_text())
        manager.kill()
        run.puppet("manager")
        assert not gone(sleeper, start_ticks(sleeper) or 0)
        os.kill(sleeper, signal.SIGKILL)
