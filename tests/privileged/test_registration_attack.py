"""Registering while hostile processes of the endpoint's accounts try to trace every process that registering starts."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.cli import Cli, open_directory
from tests.support.monitor import MonitorRun
from tests.support.registrar import TOKEN, Registrar, configure
from tests.support.waiting import until

GENUINE, FORGED = "22" * 32, "66" * 32
TRACER = Path(__file__).parents[1] / "support" / "tracer.py"


@contextlib.contextmanager
def tracing(directory: Path, name: str) -> Iterator[Path]:
    """Have a hostile process of account `name` trace every process it can; yields its log."""
    account = pwd.getpwnam(name)
    log, program = directory / f"{name}.traced", directory / "tracer.py"
    program.write_text(TRACER.read_text())
    program.chmod(0o644)
    log.touch()
    os.chown(log, account.pw_uid, account.pw_gid)
    argv = [sys.executable, "-I", str(program), str(log), GENUINE, FORGED]
    tracer = subprocess.Popen(argv, user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd="/")
    try:
        until("the tracer runs", lambda: "ready" in log.read_text(), 20)
        yield log
    finally:
        print(log.read_text())
        tracer.kill()
        tracer.wait()


@pytest.mark.parametrize("role", ["manager", "mapper", "mep-register"])
def test_registering_again(mep: Cli, registrar: Registrar, role: str) -> None:
    configure(mep, registrar)
    manager, mapper = (entry.pw_name for entry in mep.helpers("site"))
    name = {"manager": manager, "mapper": mapper}.get(role, role)
    registrar.slow_s = 0.5
    with tracing(mep.directory, name) as log:
        for _ in range(4):
            mep("register", "site", "--again", "--token-file", str(mep.directory / "token"))
        said = log.read_text()

    pinned = json.loads(mep.path("var", "site", "registration.json").read_text())["signing_public_key"]
    print(name, "pinned", pinned)
    assert TOKEN not in said
    assert "attached" not in said and "memory" not in said
    assert pinned == GENUINE
    if name == "mep-register":
        assert said.count("denied") >= 4, "each of the four was seen, and refused"


@pytest.mark.parametrize(("name", "kind"), [("mep", "manager"), ("mep-idmap", "mapper")])
def test_what_the_monitor_starts(name: str, kind: str) -> None:
    """Manager and mapper exec; a hostile process of the same account sees them from the first instruction on."""
    run = MonitorRun()
    mapping = run.root / "identity_mapping.json"
    mapping.write_text("[]")
    section = replace(run.resolved.mapper, mapping_path=str(mapping))
    run.resolved = replace(run.resolved, mapper=section, python=sys.executable)
    seen: list[int] = []
    with open_directory() as directory, tracing(directory, name) as log, run:
        for _ in range(4):
            pid = until(f"the {kind} runs", lambda: helper_pid(run.pid, kind), 20)
            until("it was seen", lambda pid=pid: f" {pid} " in log.read_text(), 20)
            seen.append(pid)
            os.kill(pid, 9)
            until("it is gone", lambda pid=pid: helper_pid(run.pid, kind) != pid)
        # Other tests have processes of this account too, such as callouts, which may be traced.
        said = [line for line in log.read_text().splitlines() if any(f" {pid} " in f"{line} " for pid in seen)]

    assert len(said) >= len(seen)
    assert not [line for line in said if "attached" in line or "memory" in line]


def helper_pid(monitor: int, kind: str) -> int:
    for pid in Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split():
        with contextlib.suppress(OSError):
            if f"mep.{kind}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    return 0
