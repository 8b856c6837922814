"""A new monitor reconnects to the keepers of a killed one: by lock and socket, and never by what an account forged."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mep.boundary.messages import EndpointEnded, EndpointRunning
from mep.boundary.resolved_config import Policy, to_json
from mep.boundary.runtime_files import open_keeper, start_ticks
from tests.support.accounts import LocalAccount, account
from tests.support.monitor import MonitorRun, Puppet, gone, new_uep_id, processes_of, running_monitor, start_as
from tests.support.waiting import until

_HOLD_AND_LISTEN = """
import fcntl, os, socket, sys, time
directory = sys.argv[1]
lock = os.open(directory + "/lock", os.O_RDWR | os.O_CREAT, 0o666)
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(directory + "/socket")
os.chmod(directory + "/socket", 0o777)
listener.listen(5)
print("ready", flush=True)
time.sleep(600)
"""
_RESOLVER = """
import os, sys
os.write(int(sys.argv[2]), open({document!r}, "rb").read())
os.write(int(sys.argv[4]), b"another bundle")
"""
_CONNECT = """
import socket, sys
made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
made.connect(sys.argv[1])
made.send(b"\\x34" + bytes(8) + b"\\0\\0" * 2)  # StopUserEndpoint
print(made.recv(100))
"""


@pytest.fixture
def alice() -> Iterator[LocalAccount]:
    with account() as made:
        yield made


@contextlib.contextmanager
def pretender(directory: pathlib.Path, who: LocalAccount) -> Iterator[subprocess.Popen[str]]:
    """A process of `who` that holds a lock and listens in `directory`, as a keeper does."""
    words = [sys.executable, "-I", "-c", _HOLD_AND_LISTEN, str(directory)]
    with subprocess.Popen(words, user=who.uid, group=who.gid, stdout=subprocess.PIPE, text=True, cwd="/") as made:
        try:
            assert made.stdout is not None and made.stdout.readline() == "ready\n"
            yield made
        finally:
            made.kill()


def restart(run: MonitorRun) -> tuple[Puppet, Puppet]:
    run.stop(signal.SIGKILL)
    run.start()
    return run.ready()


def events(run: MonitorRun, event: str) -> list[str]:
    return [one["uep_id"] for one in run.audit_records() if one["event"] == event]


def test_all_are_reached_after_sigkill_and_obey(alice: LocalAccount) -> None:
    with account() as bob, running_monitor() as (run, manager, mapper):
        people = [alice, bob, alice]
        ids = [start_as(manager, mapper, who.name, ref=ref)[0] for ref, who in enumerate(people)]
        records = [run.record(uep_id) for uep_id in ids]
        for _ in range(2):
            manager, mapper = restart(run)
            assert {manager.take(EndpointRunning)[0].uep_id for _ in ids} == set(ids)
        assert sorted(events(run, "adopt")) == sorted(2 * ids)
        assert "cannot speak" not in run.log_text() and "violation" not in run.log_text()
        run.end(ids[0])  # the message of its keeper arrives
        assert manager.take(EndpointEnded)[0].uep_id == ids[0]
        assert run.stop() == 0
        for record in records:
            assert gone(record["uep_pid"], record["uep_start"])
        assert not processes_of(alice.uid) and not processes_of(bob.uid)
        assert not list((run.run / "keepers").iterdir())


def test_the_administrators_reason_reaches_an_adopted_keeper(alice: LocalAccount) -> None:
    """It is told by message, with code and grace, which a signal doesn't carry."""
    with running_monitor() as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        restart(run)
        assert run.stop() == 0
        end = next(one for one in run.audit_records() if one["event"] == "end")
        assert "stopped by the monitor" in end["detail"]


def test_a_keeper_that_was_stopped_is_adopted_and_ended(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = run.record(uep_id)
        os.kill(record["keeper_pid"], signal.SIGSTOP)
        manager, mapper = restart(run)
        assert manager.take(EndpointRunning)[0].uep_id == uep_id
        assert not gone(record["uep_pid"], record["uep_start"])
        assert run.stop() == 0
        assert "a keeper does not end" in run.log_text()
        assert gone(record["keeper_pid"], record["keeper_start"]) and gone(record["uep_pid"], record["uep_start"])


def test_a_user_endpoint_that_outlived_its_keeper_is_killed(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, mode="outlives")
        record = run.record(uep_id)
        run.stop(signal.SIGKILL)
        os.kill(record["keeper_pid"], signal.SIGKILL)
        until("the lock is free", lambda: open_keeper(run.record_path(uep_id).parent) is None)
        assert not gone(record["uep_pid"], record["uep_start"])
        run.start()
        ended = run.ready()[0].take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "USER_ENDPOINT_LOST")
        until("it is killed", lambda: gone(record["uep_pid"], record["uep_start"]))


def test_a_free_lock_means_dead_whatever_the_record_says(alice: LocalAccount) -> None:
    """A stale record names the pid of another process, with the right start time: it isn't signalled."""
    with subprocess.Popen(["sleep", "600"]) as bystander, running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = run.record(uep_id)
        run.stop(signal.SIGKILL)
        os.kill(record["keeper_pid"], signal.SIGKILL)
        until("the user endpoint ends with it", lambda: gone(record["uep_pid"], record["uep_start"]))
        until("the lock is free", lambda: open_keeper(run.record_path(uep_id).parent) is None)
        record |= {"keeper_pid": bystander.pid, "keeper_start": start_ticks(bystander.pid)}
        run.record_path(uep_id).write_text(json.dumps(record))
        run.start()
        assert run.ready()[0].take(EndpointEnded)[0].uep_id == uep_id
        run.stop()
        assert events(run, "adopt") == []
        assert bystander.poll() is None
        bystander.kill()


def test_a_directory_that_an_account_made_is_left_alone(alice: LocalAccount) -> None:
    """An administrator had opened RUN/keepers: a lock, a socket and a record of another account's count for nothing."""
    with subprocess.Popen(["sleep", "600"]) as bystander, running_monitor() as (run, manager, mapper):
        real, _ = start_as(manager, mapper, alice.name)
        run.stop(signal.SIGKILL)
        forged = run.run / "keepers" / new_uep_id()
        forged.mkdir()
        os.chown(forged, alice.uid, alice.gid)
        run.run.chmod(0o755)
        forged.parent.chmod(0o755)
        with pretender(forged, alice) as forger:
            fields = {"uep_id": forged.name, "uep_pid": bystander.pid, "uep_start": start_ticks(bystander.pid)}
            (forged / "record.json").write_text(json.dumps({**run.record(real), **fields}))
            run.start()
            manager, _ = run.ready()
            assert manager.take(EndpointRunning)[0].uep_id == real
            assert events(run, "adopt") == [real]
            assert f"left alone uep={forged.name}" in run.log_text()
            assert run.stop() == 0
            assert forger.poll() is None and bystander.poll() is None
        bystander.kill()


def test_a_lock_of_another_account_is_not_believed(alice: LocalAccount) -> None:
    with running_monitor() as (run, _, _):
        run.stop(signal.SIGUSR1)
        directory = run.run / "keepers" / new_uep_id()
        directory.mkdir()
        for path in (directory, directory.parent):
            path.chmod(0o777)
        with pretender(directory, alice) as forger:
            for path in (directory, directory.parent):
                path.chmod(0o700)
            run.start()
            run.ready()
            assert "the lock is another account's" in run.log_text()
            assert run.stop() == 0
            assert forger.poll() is None


def test_another_process_at_a_keepers_socket_is_not_spoken_to(alice: LocalAccount) -> None:
    """The lock still names the keeper, so it can be signalled: in good order."""
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record, directory = run.record(uep_id), run.record_path(uep_id).parent
        run.stop(signal.SIGKILL)
        elsewhere = run.root / "forged"
        elsewhere.mkdir()
        os.chown(elsewhere, alice.uid, alice.gid)
        with pretender(elsewhere, alice) as forger:
            (elsewhere / "socket").rename(directory / "socket")
            run.start()
            manager, _ = run.ready()
            assert manager.take(EndpointRunning)[0].uep_id == uep_id
            assert "cannot speak to a keeper" in run.log_text()
            assert f"pid {forger.pid} of uid {alice.uid} listens" in run.log_text()
            assert run.stop() == 0
            assert gone(record["keeper_pid"], record["keeper_start"]) and gone(record["uep_pid"], record["uep_start"])
            assert next(one for one in run.audit_records() if one["event"] == "end")["code"] == "STOPPED"
            assert forger.poll() is None


def test_a_keeper_turns_another_account_away(alice: LocalAccount) -> None:
    with account() as bob, running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record, path = run.record(uep_id), run.record_path(uep_id).with_name("socket")
        words = [sys.executable, "-I", "-c", _CONNECT, str(path)]
        refused = subprocess.run(words, user=bob.uid, group=bob.gid, capture_output=True, text=True, cwd="/")
        assert "PermissionError" in refused.stderr, "the directory is closed"
        for directory in (path.parent.parent, path.parent):
            directory.chmod(0o711)
        path.chmod(0o777)
        done = subprocess.run(words, user=bob.uid, group=bob.gid, capture_output=True, text=True, cwd="/")
        assert done.stdout == "b''\n" or "Error" in done.stderr
        until("it is said", lambda: f"turned away uid={bob.uid}" in run.log_text())
        assert not gone(record["uep_pid"], record["uep_start"])
        run.end(uep_id)  # its monitor still hears it
        assert manager.take(EndpointEnded)[0].uep_id == uep_id


def test_an_account_is_watched_without_a_monitor(alice: LocalAccount) -> None:
    """The keeper checks and ends; the next monitor tells."""
    run = MonitorRun()
    run.resolved = replace(run.resolved, manager=replace(run.resolved.manager, recheck_interval_s=0.5))
    with run:
        manager, mapper = run.ready()
        uep_id, _ = start_as(manager, mapper, alice.name)
        run.stop(signal.SIGKILL)
        subprocess.run(["usermod", "--expiredate", "1", alice.name], check=True, capture_output=True)
        until("it is ended", lambda: run.record(uep_id)["state"] == "ended")
        assert not processes_of(alice.uid)
        record = run.record(uep_id)
        assert record["code"] == "ACCOUNT_REFUSED" and "expired" in record["detail"]
        run.start()
        ended = run.ready()[0].take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "ACCOUNT_REFUSED")
        assert "does not admit you" in ended.public and "expired" not in ended.public


@pytest.mark.parametrize("how", ["restart", "reload"])
def test_a_new_policy_reaches_keepers_that_run(alice: LocalAccount, how: str) -> None:
    run = MonitorRun()
    run.resolved = replace(run.resolved, manager=replace(run.resolved.manager, recheck_interval_s=300.0))
    script, document = run.root / "resolver.py", run.root / "new.json"
    run.resolved = replace(run.resolved, resolver_argv=[sys.executable, "-I", str(script)])
    new = replace(run.resolved, policy=Policy(denied_users=[alice.name]))
    document.write_bytes(to_json(new))
    script.write_text(_RESOLVER.format(document=str(document)))
    with run:
        manager, mapper = run.ready()
        uep_id, _ = start_as(manager, mapper, alice.name)
        if how == "reload":
            os.kill(run.pid, signal.SIGHUP)
        else:
            run.resolved = new
            manager, mapper = restart(run)
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "ACCOUNT_REFUSED")
        record = next(one for one in run.audit_records() if one["event"] == "revoke")
        assert "denied_users" in record["detail"]
