"""The administrator's hooks, as real programs: their input, the form of a refusal, and the limits on them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from typing import Any

import pytest

from mep.boundary.resolved_config import Hook
from tests.support.accounts import LocalAccount
from tests.support.monitor import ask, map_next, processes_of, running_monitor, start_as
from tests.support.pam import Site, pam_monitor
from tests.support.waiting import until


def hook(site: Site, body: str, name: str = "hook", timeout_s: float = 5.0) -> Hook:
    return Hook(str(site.script(name, body)), timeout_s)


def start_record(run: Any) -> dict[str, Any]:
    return next(one for one in run.audit_records() if one["event"] == "start")


def test_what_hooks_are_given(alice: LocalAccount, site: Site) -> None:
    body = f"cat > {site.root}/$1.json; env > {site.root}/$1.env; ls -l /proc/self/fd > {site.root}/$1.fd; id -u"
    both = hook(site, body)
    with running_monitor(pre_start_hook=both, post_stop_hook=both) as (run, manager, mapper):
        uep_id, answer = start_as(manager, mapper, alice.name, life_s=0, ended="IDLE")
        assert answer.outcome == "started"
        until("it is over", lambda: not run.record(uep_id))
        before = json.loads((site.root / "pre_start.json").read_text())
        assert before == {
            "event": "pre_start", "endpoint": "test", "uep_id": uep_id, "local_user": alice.name, "uid": alice.uid,
            "gid": alice.gid, "home": alice.home, "correlation_id": "corr-1",
            "identities": json.dumps({"username": "alice@example.edu"}),
        }  # fmt: skip
        after = json.loads((site.root / "post_stop.json").read_text())
        assert after == {**before, "event": "post_stop", "code": "IDLE", "status": 0}
        names = {line.partition("=")[0] for line in (site.root / "pre_start.env").read_text().splitlines()}
        assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH", "LANG", "HOME", "MEP_HOOK"}
        assert "socket:" not in (site.root / "pre_start.fd").read_text()
        assert "pre_start_hook ended" in run.log_text() and "output=0" in run.log_text()


def test_hook_that_says_no(alice: LocalAccount, site: Site) -> None:
    """Its first line of output is for the person, its standard error for the administrator."""
    refusing = hook(site, "echo Your project has no hours left.; echo second line; echo project x17 >&2; exit 3")
    after = hook(site, f"touch {site.root}/was-run", "after")
    with running_monitor(pre_start_hook=refusing, post_stop_hook=after) as (run, manager, mapper):
        _, answer = start_as(manager, mapper, alice.name)
        assert (answer.outcome, answer.code) == ("refused", "ACCOUNT_REFUSED")
        assert answer.public == "The site refuses to start your process: Your project has no hours left."
        record = start_record(run)
        assert record["stage"] == "HOOK" and "exit status 3: project x17" in record["detail"]
        until("the keeper is gone", lambda: not run.status()["user_endpoints"] if run.status() else False)
        assert not (site.root / "was-run").exists()
        assert not processes_of(alice.uid)


def test_hook_that_says_no_without_a_word(alice: LocalAccount, site: Site) -> None:
    silent = hook(site, "exit 1")
    with running_monitor(pre_start_hook=silent) as (run, manager, mapper):
        assert "site's policy does not admit you" in start_as(manager, mapper, alice.name)[1].public
        assert start_record(run)["detail"] == f"pre_start_hook {silent.path}: exit status 1: nothing on standard error"


def test_hook_that_hangs_is_killed_with_its_group(alice: LocalAccount, site: Site) -> None:
    body = f"sleep 600 & echo $! > {site.root}/child; echo waiting >&2; wait"
    with running_monitor(pre_start_hook=hook(site, body, timeout_s=0.5)) as (run, manager, mapper):
        _, answer = start_as(manager, mapper, alice.name)
        assert answer.code == "START_FAILED" and "HOOK" in answer.public
        assert "not done within 0.5 s: killed: waiting" in start_record(run)["detail"]
        child = int((site.root / "child").read_text())
        until("its child is gone", lambda: not os.path.exists(f"/proc/{child}"))


def test_hook_that_writes_without_end(alice: LocalAccount, site: Site) -> None:
    """Little of its output is kept, but all of it is read, and the hook never blocks on a write."""
    body = "dd if=/dev/zero bs=1M count=64 2>/dev/null | tr '\\0' x"
    with running_monitor(pre_start_hook=hook(site, body)) as (run, manager, mapper):
        assert start_as(manager, mapper, alice.name)[1].outcome == "started"
        assert len(run.log_text()) < 10_000


def test_hook_that_is_stopped(alice: LocalAccount, site: Site) -> None:
    waiting = hook(site, f"touch {site.root}/runs; sleep 600", timeout_s=60)
    with running_monitor(pre_start_hook=waiting) as (run, manager, mapper):
        ask(manager, 1)
        map_next(mapper, alice.name)
        until("the hook runs", (site.root / "runs").exists)
        begun = time.monotonic()
        assert run.stop() == 0
        assert time.monotonic() - begun < 30


def test_hook_that_cannot_run(alice: LocalAccount, site: Site) -> None:
    for body, problem in (("#!/no/such/interpreter\n", "cannot be run"), ("#!/bin/sh\nkill -9 $$\n", "signal 9")):
        path = site.write("hook", body, 0o755)
        with running_monitor(pre_start_hook=Hook(str(path), 5.0)) as (run, manager, mapper):
            assert start_as(manager, mapper, alice.name)[1].code == "START_FAILED"
            assert problem in start_record(run)["detail"]


@pytest.mark.parametrize("how", ["mode", "owner", "directory", "link", "missing", "not executable"])
def test_hook_that_others_could_have_written(alice: LocalAccount, site: Site, how: str) -> None:
    """Looked at before each run, since it may have changed after the configuration was read."""
    directory = site.root / "hooks"
    directory.mkdir()
    path = directory / "hook"
    path.write_text(f"#!/bin/sh\ntouch {site.root}/ran\n")
    path.chmod(0o755)
    spoil = {
        "mode": lambda: path.chmod(0o775),
        "owner": lambda: os.chown(path, alice.uid, alice.gid),
        "directory": lambda: directory.chmod(0o777),
        "link": lambda: _through_a_link(site, path, alice),
        "missing": path.unlink,
        "not executable": lambda: path.chmod(0o644),
    }
    spoil[how]()
    with running_monitor(pre_start_hook=Hook(str(path), 5.0)) as (run, manager, mapper):
        _, answer = start_as(manager, mapper, alice.name)
        assert answer.code == "START_FAILED" and start_record(run)["stage"] == "HOOK"
        assert not (site.root / "ran").exists()


def _through_a_link(site: Site, path: pathlib.Path, owner: LocalAccount) -> None:
    theirs = pathlib.Path(owner.home, "hook")
    theirs.write_text(path.read_text())
    theirs.chmod(0o755)
    os.chown(theirs, owner.uid, owner.gid)
    path.unlink()
    path.symlink_to(theirs)


def test_after_a_start_that_failed_later(alice: LocalAccount, site: Site) -> None:
    """post_stop_hook runs after every successful pre_start_hook, whatever came between; PAM's session is inside."""
    record = site.script("order", f'echo "${{PAM_TYPE:-$1}}" >> {site.record}')
    both = Hook(str(record), 5.0)
    lines = [f"session required pam_exec.so quiet {record}"]
    with pam_monitor(site, *lines, pre_start_hook=both, post_stop_hook=both) as (_run, manager, mapper):
        assert start_as(manager, mapper, alice.name, mode="exit")[1].code == "START_FAILED"
        wanted = ["pre_start", "open_session", "close_session", "post_stop"]
        with contextlib.suppress(AssertionError):
            until("all of it happened", lambda: site.recorded() == wanted, 5)
        assert site.recorded() == wanted
