"""Who the monitor must be, the settings that it refuses to start with, and the same code as a single-user endpoint."""

from __future__ import annotations

import os
import pathlib
import pwd
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import EndpointRunning, MapRequest, NotMapped, StartAnswered
from mep.boundary.resolved_config import to_json
from mep.boundary.runtime_files import read_status
from tests.support.accounts import LocalAccount
from tests.support.monitor import MonitorRun, ask, gone, map_next, processes_of, running_monitor, start_as
from tests.support.waiting import until


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# --- single-user ---------------------------------------------------------------------------------------------


def test_single_user_endpoint(alice: LocalAccount) -> None:
    with running_monitor(owner=alice) as (run, manager, mapper):
        uep_id, answer = start_as(manager, mapper, alice.name)
        assert answer.outcome == "started"
        pid = run.record(uep_id)["uep_pid"]
        for one in (run.pid, manager.pid, mapper.pid, run.record(uep_id)["keeper_pid"], pid):
            assert status_of(one)["Uid"].split() == [str(alice.uid)] * 4
        status = status_of(pid)
        assert (status["NoNewPrivs"], status["Umask"], int(status["CapEff"], 16)) == ("1", "0077", 0)
        assert status["NSsid"] == str(pid)
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == [str(number) for number in range(8)]  # 7: its figures
        assert os.readlink(f"/proc/{pid}/cwd") == alice.home
        assert run.run.stat().st_mode & 0o777 == 0o700


def test_single_user_endpoint_runs_nobody_else(alice: LocalAccount) -> None:
    with running_monitor(owner=alice) as (_, manager, mapper):
        for ref, name in enumerate(("root", "daemon", "nobody")):
            _, answer = start_as(manager, mapper, name, ref=ref)
            assert (answer.outcome, answer.code) == ("refused", "ACCOUNT_REFUSED")


def test_single_user_restart_and_stop(alice: LocalAccount) -> None:
    with running_monitor(owner=alice) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, mode="orphans")
        record = run.record(uep_id)
        run.process.kill()  # type: ignore[union-attr]  # it runs
        run.process.wait(15)  # type: ignore[union-attr]
        run.start()
        manager, _ = run.ready()
        assert manager.take(EndpointRunning)[0].uep_id == uep_id
        assert run.stop() == 0
        assert gone(record["uep_pid"], record["uep_start"])
        assert not processes_of(alice.uid)


# --- identity of the monitor and its children -----------------------------------------------------------------


def test_manager_and_mapper_are_dropped() -> None:
    with MonitorRun() as run:
        for kind, name in (("manager", "mep"), ("mapper", "mep-idmap")):
            puppet = run.puppet(kind)
            status = status_of(puppet.pid)
            uid = str(os.stat(f"/proc/{puppet.pid}").st_uid)
            assert subprocess.check_output(["id", "-un", uid], text=True).strip() == name
            assert status["Uid"].split() == [uid] * 4
            assert status["Groups"] == ""
            assert status["Gid"].split() == [str(pwd.getpwnam(name).pw_gid)] * 4
            assert [int(status[cap], 16) for cap in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")] == [0] * 5
            assert (status["NoNewPrivs"], status["Umask"], status["NSsid"]) == ("1", "0077", str(puppet.pid))
            environ = pathlib.Path(f"/proc/{puppet.pid}/environ").read_text()
            assert {one.partition("=")[0] for one in environ.split("\0") if one} <= {"HOME", "PATH", "LANG", "PWD"}
            # The puppet has handed 3, 4 and 5 to us, and closes its own. 6 is the manager's socket for questions.
            descriptors, left = f"/proc/{puppet.pid}/fd", ["0", "1", "2", "6"] if kind == "manager" else ["0", "1", "2"]
            until("no other is left", lambda path=descriptors, left=left: sorted(os.listdir(path)) == left)
            assert os.readlink(f"/proc/{puppet.pid}/fd/0") == "/dev/null"
            assert len(os.pread(puppet.secret, 100, 0)) == 32


def test_manager_cannot_look_into_the_mapper() -> None:
    with running_monitor() as (_, manager, mapper):
        code = (
            f"import os\nfor path in ('mem', 'fd/1', 'environ', 'maps'):\n"
            f" try:\n  open('/proc/{mapper.pid}/' + path, 'rb').read(1)\n"
            f" except PermissionError: pass\n else: print(path)\n"
        )
        uid = os.stat(f"/proc/{manager.pid}").st_uid
        command = [sys.executable, "-I", "-c", code]
        assert subprocess.check_output(command, user=uid, group=uid, extra_groups=[]) == b""


def test_children_die_with_the_monitor() -> None:
    with running_monitor() as (run, manager, mapper):
        run.process.kill()  # type: ignore[union-attr]  # it runs
        until("manager and mapper are gone", lambda: manager.is_gone() and mapper.is_gone())


# --- refusals to start ----------------------------------------------------------------------------------------


def refused(change: Callable[[MonitorRun], None], owner: LocalAccount | None = None) -> tuple[MonitorRun, str]:
    """Start a monitor after `change`; return its output when it has ended."""
    run = MonitorRun(owner=owner)
    try:
        change(run)
        run.start()
        assert run.process is not None and run.process.wait(15) == 1
        return run, run.log_text()
    finally:
        run.close()


def changed(run: MonitorRun, **changes: object) -> None:
    run.resolved = replace(run.resolved, **changes)


def link(run: MonitorRun) -> None:
    (run.root / "there").mkdir()
    (run.root / "there").chmod(0o777)
    changed(run, runtime_dir=str(run.root / "there" / "run"))


CLOSED: dict[str, tuple[Callable[[MonitorRun], None], str]] = {
    "a directory that others may write to": (link, "bad permissions: chmod go-w"),
    "an interpreter that is not there": (lambda run: changed(run, python="/nonexistent"), "No such file"),
    "an interpreter that others can write": (
        lambda run: (run.root / "python").chmod(0o777),
        "bad permissions: chmod go-w",
    ),
    "a single-user endpoint as root": (lambda run: changed(run, multi_user=False), "never as root"),
    "an audit log that is a link": (lambda run: run.audit.symlink_to("/etc/passwd"), "is a symbolic link"),
    "an audit log that is a fifo": (lambda run: os.mkfifo(run.audit), "not a regular file"),
}


@pytest.mark.parametrize(("change", "reason"), CLOSED.values(), ids=CLOSED.keys())
def test_refused_at_the_start(change: Callable[[MonitorRun], None], reason: str) -> None:
    _, log = refused(change)
    assert reason in log


def test_multi_user_without_root(alice: LocalAccount) -> None:
    _, log = refused(lambda run: changed(run, multi_user=True), owner=alice)
    assert "must run as root" in log


def test_runtime_directory_of_somebody_else(alice: LocalAccount) -> None:
    def give_away(run: MonitorRun) -> None:
        run.run.mkdir()
        os.chown(run.run, alice.uid, alice.gid)

    _, log = refused(give_away)
    assert f"belongs to uid {alice.uid}" in log


def test_reason_of_a_failed_start_is_in_the_status_file() -> None:
    run = MonitorRun(python="/nonexistent")
    try:
        run.start()
        assert run.process is not None and run.process.wait(15) == 1
        status = read_status(run.run)
        assert status is not None and (status.state, status.pid) == ("failed", run.pid)
        assert "/nonexistent" in status.problem
    finally:
        run.close()


@pytest.mark.parametrize(
    "argv", [[], ["--config-fd", "x", "--bundle-fd", "4"], ["--config-fd", "99", "--bundle-fd", "98"]]
)
def test_bad_command_line(argv: list[str]) -> None:
    command = [sys.executable, "-I", "-m", "mep.root.monitor", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and done.stderr.startswith("mep monitor: ")


def test_configuration_that_is_not_sealed() -> None:
    run = MonitorRun()
    descriptor = os.memfd_create("config", os.MFD_ALLOW_SEALING)
    os.write(descriptor, to_json(run.resolved))
    bundle = sealed_memfd("bundle", b"")
    command = [
        sys.executable,
        "-I",
        "-m",
        "mep.root.monitor",
        "--config-fd",
        str(descriptor),
        "--bundle-fd",
        str(bundle),
    ]
    try:
        done = subprocess.run(
            command, pass_fds=(descriptor, bundle), capture_output=True, text=True, timeout=30, check=False
        )
    finally:
        os.close(descriptor)
        os.close(bundle)
        run.close()
    assert done.returncode == 1 and "seals" in done.stderr


def test_key_that_is_missing_is_named_and_tried_again() -> None:
    with MonitorRun() as run:
        run.puppet("manager")
        (run.root / "unseal.key").rename(run.root / "elsewhere")
        run.puppet("mapper").kill()
        until("the status says so", lambda: "unseal.key" in run.status().get("problem", ""))
        (run.root / "elsewhere").rename(run.root / "unseal.key")
        run.puppet("mapper")


# --- records and logs -----------------------------------------------------------------------------------------


def test_foreign_text_cannot_forge_a_record(alice: LocalAccount) -> None:
    forged = 'x"}\n{"event": "start", "outcome": "started", "local_user": "root"}\n\u2028\x1b[2J'
    with running_monitor() as (run, manager, mapper):
        ask(manager, 1)
        request, descriptors = mapper.take(MapRequest)
        os.close(descriptors[0])
        mapper.send(NotMapped(request.ref, forged[:20], "IDENTITY_NOT_MAPPED", forged, forged, forged[:40], forged))
        answer = manager.take(StartAnswered)[0]
        assert answer.public.isprintable() and answer.correlation_id.isprintable()
        lines = run.audit.read_bytes().splitlines()
        assert len(lines) == 1 and lines[0].isascii()
        assert run.audit_records()[0]["detail"] == forged
        assert run.audit.stat().st_mode & 0o777 == 0o600
        assert '{"event"' not in "".join(line for line in run.log_text().splitlines() if not line.startswith("20"))


def test_audit_log_is_reopened(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        run.audit.rename(run.root / "audit.1")
        os.kill(run.pid, 1)
        until("reopened", run.audit.exists)
        start_as(manager, mapper, alice.name, ref=2)
        assert [one["event"] for one in run.audit_records()] == ["request", "start"]


def test_log_that_nobody_reads_stops_nothing(alice: LocalAccount) -> None:
    """A terminal that is stopped, a pipe that is full: lines are lost, starts are not."""
    ours, theirs = os.pipe()
    run = MonitorRun()
    run.log = pathlib.Path(f"/proc/self/fd/{theirs}")
    try:
        run.start()
        manager, mapper = run.ready()
        os.set_blocking(theirs, False)
        while True:
            try:
                os.write(theirs, b"x" * 65536)
            except BlockingIOError:
                break
        os.set_blocking(theirs, True)
        for ref in range(5):
            ask(manager, ref)
            map_next(mapper, "root")
            assert manager.take(StartAnswered)[0].code == "ACCOUNT_REFUSED"
    finally:
        run.close()
        os.close(ours)
        os.close(theirs)
