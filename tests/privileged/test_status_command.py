"""`mep status` as an administrator sees it, on a terminal, in a pipe and with --json, of a real monitor."""

from __future__ import annotations

import json
import os
import pathlib
import pty
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mep.boundary.messages import LinkStatus, MappingStatus, StillMapped
from tests.privileged.test_monitor_rechecks import answer, monitor
from tests.support.accounts import LocalAccount, account
from tests.support.monitor import MonitorRun, Puppet, start_as
from tests.support.waiting import until

PROBLEM = "mapping.json: document 0: \x1b[31malice@example.edu\x1b[0m: no such key"


@pytest.fixture
def alice() -> Iterator[LocalAccount]:
    with account() as made:
        yield made


def command(run: MonitorRun, *options: str) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment of `mep status` for a monitor of the tests."""
    link = run.root / "site"
    if not link.is_symlink():
        link.symlink_to(run.run.name)
    roots = {"MEP_RUN": str(run.root), "MEP_ETC": f"{run.root}/etc", "MEP_VAR": f"{run.root}/var", "COLUMNS": "250"}
    return [sys.executable, "-I", "-m", "mep.cli", "status", link.name, *options], {**os.environ, **roots}


def status(run: MonitorRun, *options: str, uid: int = 0, expect: tuple[int, ...] = (0, 9, 10)) -> str:
    """Return its output into a pipe."""
    argv, environment = command(run, *options)
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, user=uid, cwd="/")
    assert done.returncode in expect, done
    return done.stdout + done.stderr


def on_terminal(run: MonitorRun, columns: int) -> str:
    """Return its output on a terminal."""
    argv, environment = command(run)
    environment["COLUMNS"] = str(columns)
    ours, theirs = pty.openpty()
    with subprocess.Popen(argv, env={**environment, "TERM": "xterm"}, stdout=theirs, stderr=theirs, cwd="/") as process:
        os.close(theirs)
        said = b""
        try:
            while data := os.read(ours, 65536):
                said += data
        except OSError:  # the other side is closed
            pass
        assert process.wait() in {0, 10}
    os.close(ours)
    return said.decode()


def test_the_state_of_the_mapping_file(alice: LocalAccount) -> None:
    with monitor(300) as (run, manager, mapper):
        mapper.send(MappingStatus(loaded="mapping.json: 3 documents, loaded 2026-11-20T16:00:00Z", problem=""))
        manager.send(LinkStatus(state="up", detail=""))
        until("shown", lambda: "3 documents" in status(run))
        text = status(run)
        assert "configured at" in text
        assert "problem" not in text
        mapper.send(MappingStatus(loaded="mapping.json: 3 documents, loaded 2026-11-20T16:00:00Z", problem=PROBLEM))
        text = until("shown", lambda: (said := status(run)) and "cannot be used" in said and said)
        assert "3 documents" in text
        assert "alice@example.edu" in text
        assert "\x1b" not in text
        refused = json.loads(status(run, "--json"))["mapping_refused_at"]
        assert time.time() - 300 < refused <= time.time()
        status(run, expect=(9,))
        # Other accounts see nothing, not even whether it runs.
        others = status(run, uid=pwd.getpwnam("nobody").pw_uid, expect=(7,))
        assert others.startswith("mep: not permitted")
        assert "alice@example.edu" not in (run.run / "status.json").read_text()
        for name in ("status.json", "reasons.json"):
            assert (run.run / name).stat().st_mode & 0o777 == 0o600
        mapper.send(MappingStatus(loaded="mapping.json: 4 documents, loaded 2026-11-20T16:01:00Z", problem=""))
        until("good again", lambda: "4 documents" in status(run))
        assert "problem" not in status(run, expect=(0,))
        assert json.loads(status(run, "--json"))["mapping_refused_at"] is None


def test_a_configuration_that_is_refused(tmp_path: pathlib.Path) -> None:
    resolver = ["/bin/sh", "-c", "exit $(cat $0)", str(tmp_path / "status")]
    (tmp_path / "status").write_text("4")
    with monitor(300, resolver_argv=resolver) as (run, _, _mapper):
        first = until("shown", lambda: json.loads(status(run, "--json"))["configured_at"])
        os.kill(run.pid, 1)
        text = until("shown", lambda: (said := status(run)) and "configuration problem" in said and said)
        assert "refused when last read, the previous one stays in force" in text
        assert "the resolver ended with exit status 4; `mep check` says why" in text
        status(run, expect=(9,))
        value = json.loads(status(run, "--json"))
        assert value["configured_at"] == first
        assert first < value["configuration_refused_at"] <= time.time()


def start(run: MonitorRun, manager: Puppet, mapper: Puppet, name: str) -> str:
    uep_id, _ = start_as(manager, mapper, name)
    until("running", lambda: "running" in status(run))
    return uep_id


def test_what_runs_and_what_is_overdue(alice: LocalAccount) -> None:
    with monitor(0.5) as (run, manager, mapper):
        uep_id = start(run, manager, mapper, alice.name)
        text = until("overdue", lambda: (said := status(run)) and "(overdue)" in said and said)
        assert "1 of 1: identity mapping not re-verified" in text
        status(run, expect=(10,))
        line = next(one for one in text.splitlines() if one.startswith(uep_id))
        assert line.split()[1:3] == [alice.name, "running"]
        assert line.endswith("alice@example.edu")
        assert "(overdue), account checked" in text
        for columns in (250, 120, 80, 60, 40):
            shown = on_terminal(run, columns)
            assert uep_id in shown
            assert "…" not in shown
            assert "(overdue)" in " ".join(shown.split())
            # A line without a place to break it may be longer: the fingerprint of a key.
            assert all(len(one) <= columns for one in shown.splitlines() if uep_id in one), (columns, shown)
        value = json.loads(status(run, "--json"))
        assert value["overdue"] == 1
        assert value["user_endpoints"][0]["overdue"] is True
        assert value["accounts_overdue"] == 0
        answer(manager, mapper, StillMapped, uep_id, alice.name, "c-2")
        until("checked", lambda: json.loads(status(run, "--json"))["overdue"] == 0)


def test_a_status_that_does_not_run(tmp_path: pathlib.Path) -> None:
    roots = {"MEP_RUN": f"{tmp_path}/run", "MEP_ETC": f"{tmp_path}/etc", "MEP_VAR": f"{tmp_path}/var"}
    environment = {**os.environ, **roots}
    (tmp_path / "run" / "site").mkdir(parents=True)
    for name, code, said in (("site", 3, "not registered"), ("none", 4, "there is no endpoint none")):
        argv = [sys.executable, "-I", "-m", "mep.cli", "status", name]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert said in done.stdout + done.stderr
